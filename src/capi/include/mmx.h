/* mmx's runner for C programs; made by cbindgen from src/capi, so change it there.
 *
 * A model is a GGUF: weights, tokenizer, chat template and sampling settings. A session is one text in
 * progress. Link with -lmmx (shared), or with libmmx.a -lstdc++ -lm -lpthread -ldl (static).
 *
 * Every function that can fail returns an mmx_status; mmx_last_error() then says why, in a sentence.
 * Strings are UTF-8. Nothing here unwinds or aborts on bad arguments, but a pointer must be null or valid.
 *
 * Threads: a model may be used by any number of threads at once. A session is used by one thread at a time;
 * a second one gets MMX_STATUS_BUSY. Different sessions of one model are independent. A session keeps its
 * model's weights alive, so models and sessions are freed in any order, each once, by no thread while
 * another one uses them. What holds for sessions holds for generations, too.
 *
 * Buffers: functions that fill a buffer store in *length (or *count) how much there is, also when they
 * return MMX_STATUS_TOO_SMALL; with a null buffer and a capacity of 0 they only say so.
 */

#ifndef MMX_H
#define MMX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// The status of a call: how it ended.
typedef enum {
  // Done.
  MMX_STATUS_OK = 0,
  // The model, the file or the request does not allow it.
  MMX_STATUS_FAILED = 1,
  // An argument that can never be right: a null pointer, text that is not UTF-8, broken JSON.
  MMX_STATUS_INVALID_ARGUMENT = 2,
  // The buffer is too small; how much there is was stored.
  MMX_STATUS_TOO_SMALL = 3,
  // Another thread is using the session.
  MMX_STATUS_BUSY = 4,
  // A fault of mmx itself. The session concerned can only be freed.
  MMX_STATUS_PANIC = 5,
} mmx_status;

// The reason that a generation ended.
typedef enum {
  // An end token or a stop text.
  MMX_FINISH_STOP = 0,
  // As many tokens as were allowed.
  MMX_FINISH_LENGTH = 1,
  // The session is full.
  MMX_FINISH_CONTEXT = 2,
  // The callback had enough.
  MMX_FINISH_CANCELLED = 3,
} mmx_finish;

// A generation in progress. It keeps its session alive.
typedef struct mmx_generation mmx_generation;

// A model: weights, tokenizer, chat template.
typedef struct mmx_model mmx_model;

// A text in progress.
typedef struct mmx_session mmx_session;

// Options of loading a model. Null instead of a pointer to it: everything as
// mmx_model_options_init says.
typedef struct {
  // Keep weights in the order the CPU likes best, which costs a copy; else they stay in the
  // file's memory map where they can.
  bool repack;
  // Layers computed on a GPU, counted from the end, the output matrix being the last; 0: none,
  // SIZE_MAX: all. For libraries built with a GPU's feature.
  size_t gpu_layers;
  // That GPU, CUDA0 or Vulkan0 for instance; null: the first.
  const char *device;
} mmx_model_options;

// Options of a session. Null instead of a pointer to it: everything as mmx_session_options_init
// says.
typedef struct {
  // Positions kept, tokens; 0: the model's own length, at most 4096.
  size_t n_ctx;
  // Threads, 512 at most; 0: what suits the model's size.
  size_t threads;
  // Keep keys and values in float32, which rounds nothing, instead of float16.
  bool exact;
} mmx_session_options;

// Options of a generation. To be filled in by mmx_generate_options_init first, so that later
// fields are right.
typedef struct {
  // Tokens at most.
  size_t max_tokens;
  // Divides the logits; 0: always the likeliest token.
  double temperature;
  // Only this many of the likeliest tokens; 0: all.
  size_t top_k;
  // Only the likeliest tokens that reach this probability together; 1: all.
  double top_p;
  // Only tokens of at least this share of the likeliest one's probability; 0: all.
  double min_p;
  // Makes tokens that were there already less likely; 1: off.
  double repeat_penalty;
  // Taken from the logit of each token that was drawn already; 0: off.
  double presence_penalty;
  // Taken from the logit of each token once for each time it was drawn; 0: off.
  double frequency_penalty;
  // The same seed gives the same text.
  uint64_t seed;
  // Texts that end the generation and are not part of it: `stop_count` strings.
  const char *const *stop;
  // The number of stop texts.
  size_t stop_count;
  // Go on after an end token.
  bool ignore_end;
} mmx_generate_options;

// A callback that gets each piece of text that is certain: whole characters, `length` bytes and a
// zero after them, valid during the call. `user` is what mmx_generate was given. Returns whether
// to go on. It must not use the session, jump out (longjmp) or throw.
typedef bool (*mmx_on_text)(const char *text, size_t length, void *user);

// The result of a generation.
typedef struct {
  // Why it ended.
  mmx_finish finish;
  // Tokens generated, without the end token.
  size_t tokens;
  // Tokens read before.
  size_t prompt_tokens;
  // Seconds for reading.
  double prefill_seconds;
  // Seconds for generating.
  double decode_seconds;
} mmx_generated;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// Why the last call on this thread that failed did: one sentence, empty if none has. Valid until
// the next failure on this thread.
const char *mmx_last_error(void);

// The library's version, `major.minor.patch`.
const char *mmx_version(void);

// Fills in the usual options.
//
// # Safety
// `options` is null or points to memory for options.
mmx_status mmx_model_options_init(mmx_model_options *options);

// Opens a GGUF and stores a handle, to be freed with mmx_model_free.
//
// # Safety
// Each pointer is null or valid: a string, options, memory for a handle.
mmx_status mmx_model_open(const char *path, const mmx_model_options *options, mmx_model **model);

// Opens a GGUF that is in memory, which is copied, and stores a handle.
//
// # Safety
// Each pointer is null or valid: `length` bytes, options, memory for a handle.
mmx_status mmx_model_open_bytes(const uint8_t *bytes,
                                size_t length,
                                const mmx_model_options *options,
                                mmx_model **model);

// Frees a model; its sessions live on. Null is fine.
//
// # Safety
// `model` is null or a handle that was not freed and that no other thread is using.
void mmx_model_free(mmx_model *model);

// The number of tokens in the vocabulary: logits have this many values. 0 for null.
//
// # Safety
// `model` is null or a live handle.
size_t mmx_model_vocab_size(const mmx_model *model);

// The number of positions that the model was made for. 0 for null.
//
// # Safety
// `model` is null or a live handle.
size_t mmx_model_context_length(const mmx_model *model);

// The number of values of a hidden state: embeddings have this many. 0 for null.
//
// # Safety
// `model` is null or a live handle.
size_t mmx_model_embedding_size(const mmx_model *model);

// The ids of a text. With `control`, the text of a control token, `<|im_end|>` for instance, gives
// its id; without, nothing in the text does, which is right for text of strangers.
//
// # Safety
// Each pointer is null or valid: a live handle, a string, memory for `capacity` ids, memory for a
// number.
mmx_status mmx_tokenize(const mmx_model *model,
                        const char *text,
                        bool control,
                        uint32_t *ids,
                        size_t capacity,
                        size_t *count);

// The ids of a text of `length` bytes, which may contain zeros. `control` is as in mmx_tokenize;
// `around` adds what the tokenizer puts around a text by itself, mostly nothing, in many models a
// token for its beginning: what a text that is no chat is generated after.
//
// # Safety
// Each pointer is null or valid: a live handle, `length` bytes, memory for `capacity` ids, memory
// for a number.
mmx_status mmx_tokenize_text(const mmx_model *model,
                             const char *text,
                             size_t length,
                             bool control,
                             bool around,
                             uint32_t *ids,
                             size_t capacity,
                             size_t *count);

// The text of ids: bytes that are no UTF-8 become U+FFFD, ids without a token nothing, control
// tokens nothing unless `control`. `*length` is without the final zero; the text itself may
// contain zeros.
//
// # Safety
// Each pointer is null or valid: a live handle, `count` ids, memory for `capacity` bytes, memory
// for a number.
mmx_status mmx_detokenize(const mmx_model *model,
                          const uint32_t *ids,
                          size_t count,
                          bool control,
                          char *buffer,
                          size_t capacity,
                          size_t *length);

// The text a chat becomes by the model's own template. `messages`: a JSON array of objects with
// `role` and `content`, as OpenAI's API has them. `options`: null, or a JSON object whose `tools`
// and `add_generation_prompt` (true unless it says otherwise) are Transformers' own; all else in
// it are variables of the template.
//
// # Safety
// Each pointer is null or valid: a live handle, strings, memory for `capacity` bytes, memory for a
// number.
mmx_status mmx_chat_render(const mmx_model *model,
                           const char *messages,
                           const char *options,
                           char *buffer,
                           size_t capacity,
                           size_t *length);

// The ids of a chat, what a generation begins with. Control tokens come from the template only: a
// message that contains `<|im_end|>` ends nothing. Arguments as in mmx_chat_render.
//
// # Safety
// Each pointer is null or valid: a live handle, strings, memory for `capacity` ids, memory for a
// number.
mmx_status mmx_chat_tokenize(const mmx_model *model,
                             const char *messages,
                             const char *options,
                             uint32_t *ids,
                             size_t capacity,
                             size_t *count);

// Fills in the usual options.
//
// # Safety
// `options` is null or points to memory for options.
mmx_status mmx_session_options_init(mmx_session_options *options);

// Begins an empty text and stores a handle, to be freed with mmx_session_free.
//
// # Safety
// Each pointer is null or valid: a live handle, options, memory for a handle.
mmx_status mmx_session_new(const mmx_model *model,
                           const mmx_session_options *options,
                           mmx_session **session);

// Frees a session. Null is fine.
//
// # Safety
// `session` is null or a handle that was not freed and that no other thread is using.
void mmx_session_free(mmx_session *session);

// The number of tokens in the session. 0 for null, or while another thread is using it.
//
// # Safety
// `session` is null or a live handle.
size_t mmx_session_length(const mmx_session *session);

// The number of positions in the session. 0 for null, or while another thread is using the
// session.
//
// # Safety
// `session` is null or a live handle.
size_t mmx_session_capacity(const mmx_session *session);

// Keeps the longest beginning of a text that the session holds already, forgets the rest, and
// stores how many ids that are: what is left to read is `ids + *kept`, at least one id. For a
// chat, pass the ids of all of it at each turn. With a count of 0 everything is forgotten.
//
// # Safety
// Each pointer is null or valid: a live handle, `count` ids, memory for a number.
mmx_status mmx_session_reuse(mmx_session *session, const uint32_t *ids, size_t count, size_t *kept);

// Reads ids after those in the session and stores the logits of what follows the last, as many as
// mmx_model_vocab_size says; with null and a capacity of 0 they are only read.
//
// # Safety
// Each pointer is null or valid: a live handle, `count` ids, memory for `capacity` values.
mmx_status mmx_eval(mmx_session *session,
                    const uint32_t *ids,
                    size_t count,
                    float *logits,
                    size_t capacity);

// Reads ids as mmx_eval does and stores the logits after every one of them: `[count, vocabulary]`,
// row by row.
//
// # Safety
// Each pointer is null or valid: a live handle, `count` ids, memory for `capacity` values.
mmx_status mmx_eval_all(mmx_session *session,
                        const uint32_t *ids,
                        size_t count,
                        float *logits,
                        size_t capacity);

// Reads ids as mmx_eval does and stores the mean of their final hidden states, as many values as
// mmx_model_embedding_size says: an embedding of the text, as far as a model of language has one;
// it is that of `mmx serve`. With an empty session before, that of these ids alone.
//
// # Safety
// Each pointer is null or valid: a live handle, `count` ids, memory for `capacity` values.
mmx_status mmx_embed(mmx_session *session,
                     const uint32_t *ids,
                     size_t count,
                     float *embedding,
                     size_t capacity);

// Fills in the likeliest token always, at most 512 of them, nothing else. With a model, sampling
// is as its file says it is meant to be; null is fine.
//
// # Safety
// `options` is null or memory for options; `model` is null or a live handle.
mmx_status mmx_generate_options_init(mmx_generate_options *options, const mmx_model *model);

// Reads ids after those in the session, then generates. `on_text` gets the text piece by piece
// (null: nobody does), `generated` what it came to (null is fine). The session then holds the ids
// read and generated that were computed; mmx_session_reuse makes it ready for the next turn.
//
// # Safety
// Each pointer is null or valid: a live handle, `count` ids, options whose `stop` is `stop_count`
// strings, memory for a result; the callback is what MmxText says.
mmx_status mmx_generate(mmx_session *session,
                        const uint32_t *ids,
                        size_t count,
                        const mmx_generate_options *options,
                        mmx_on_text on_text,
                        void *user,
                        mmx_generated *generated);

// Begins a generation, of which mmx_generation_next computes a step each time, and stores a
// handle, to be freed with mmx_generation_free. Nothing is read yet. The text is that of
// mmx_generate with the same arguments. The options are not used after this call.
//
// # Safety
// Each pointer is null or valid: a live handle, `count` ids, options whose `stop` is `stop_count`
// strings, memory for a handle.
mmx_status mmx_generation_new(mmx_session *session,
                              const uint32_t *ids,
                              size_t count,
                              const mmx_generate_options *options,
                              mmx_generation **generation);

// Computes a step: reads at most 512 of the ids, or writes a token. Stores the text that is
// certain now, whole characters, often none, and in `more` whether there is more to ask for. Where
// the buffer is too small, nothing is lost: the next call stores the same text. A generation whose
// session was used otherwise in between cannot go on.
//
// # Safety
// Each pointer is null or valid: a live handle, memory for `capacity` bytes, a number and a bool.
mmx_status mmx_generation_next(mmx_generation *generation,
                               char *buffer,
                               size_t capacity,
                               size_t *length,
                               bool *more);

// The ids written so far, without the end token.
//
// # Safety
// Each pointer is null or valid: a live handle, memory for `capacity` ids, memory for a number.
mmx_status mmx_generation_ids(const mmx_generation *generation,
                              uint32_t *ids,
                              size_t capacity,
                              size_t *count);

// What a generation came to: MMX_FINISH_CANCELLED where it has not ended.
//
// # Safety
// Each pointer is null or valid: a live handle, memory for a result.
mmx_status mmx_generation_result(const mmx_generation *generation, mmx_generated *generated);

// Frees a generation, whether it has ended or not; its session then holds the ids that were
// computed. Null is fine.
//
// # Safety
// `generation` is null or a handle that was not freed and that no other thread is using.
void mmx_generation_free(mmx_generation *generation);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* MMX_H */
