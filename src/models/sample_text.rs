//! The text that `mmx verify` compares forms on when the user gives none.

/// Chinese, English, digits, code, punctuation and odd spaces, so that every branch of the
/// pre-tokenizer is walked. Own words, but for two lines of public-domain verse (Li Bai, eighth
/// century).
pub(crate) const SAMPLE_TEXT: &str = "床前明月光，疑是地上霜。Tiny models are trained from scratch here: 26 million \
parameters, eight layers, one laptop.\n\n小模型也能说话：先读书，再学问答，最后变成一个文件。It's 3.14159, isn't it? \
We'll see -- they've said 1,024 tokens (2^10) fit.\n\tfn main() { println!(\"{}\", 6400 * 512); }  // two  spaces\n\
训练、导出、验证，三步走；每一步的数字都要对得上！The same ids go in, and the same logits must come out: from the \
checkpoint, from the Transformers folder, from each GGUF file, in every engine.\n今天 2025 年 4 月 29 日，气温 21.5℃。\
<|im_start|>user\n你好😀<|im_end|>\n<|im_start|>assistant\nHello, world!<|im_end|>\n";
