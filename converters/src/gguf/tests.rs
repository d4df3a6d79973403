//! Reader and writer against each other, and the reader against damaged and crafted files.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use super::*;
use crate::error::Result;

fn case(path: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/cases/files")).join(path)
}

fn rejects(path: &str, words: &[&str]) {
    let file = case(path);
    assert!(file.is_file(), "missing fixture {}", file.display());
    check_refused(Gguf::open(&file), path.rsplit('/').next().unwrap(), words);
}

fn check_refused(result: Result<Gguf>, name: &str, words: &[&str]) {
    let text = result.map(|_| ()).unwrap_err().to_string();
    assert!(text.contains(name), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    for word in words {
        assert!(text.contains(word), "expected {word:?} in: {text}");
    }
}

fn sample_metadata() -> Metadata {
    let mut metadata = Metadata::new();
    for (key, value) in [
        ("general.architecture", Value::String("llama".into())),
        ("a.u8", Value::U8(200)),
        ("a.i8", Value::I8(-3)),
        ("a.u16", Value::U16(65_535)),
        ("a.i16", Value::I16(-300)),
        ("a.u32", Value::U32(u32::MAX)),
        ("a.i32", Value::I32(i32::MIN)),
        ("a.f32", Value::F32(0.1)),
        ("a.bool", Value::Bool(true)),
        ("a.u64", Value::U64(u64::MAX)),
        ("a.i64", Value::I64(i64::MIN)),
        ("a.f64", Value::F64(0.1)),
        ("a.text", Value::String("Ġhello, 世界\n".into())),
        ("a.strings", Value::Strings(vec!["a".into(), String::new(), "Ċ".into()])),
        ("a.i32s", Value::I32s(vec![1, -2, 3])),
        ("a.u32s", Value::U32s(vec![7])),
        ("a.f32s", Value::F32s(vec![1.5, -0.0])),
        ("a.others", Value::Array(vec![Value::U16(1), Value::U16(2)])),
    ] {
        metadata.set(key, value);
    }
    metadata
}

fn sample_tensors() -> (Vec<TensorSpec>, Vec<Vec<u8>>) {
    let specs = vec![
        TensorSpec { name: "norm.weight".into(), shape: vec![3], ty: GgmlType::F32 },
        TensorSpec { name: "matrix.weight".into(), shape: vec![2, 64], ty: GgmlType::Q8_0 },
        TensorSpec { name: "stack.weight".into(), shape: vec![2, 3, 5], ty: GgmlType::F16 },
    ];
    let data = specs.iter().map(|s| (0..s.bytes().unwrap()).map(|i| i as u8).collect()).collect();
    (specs, data)
}

fn sample(metadata: &Metadata) -> Vec<u8> {
    let (specs, data) = sample_tensors();
    to_bytes(Path::new("sample"), metadata, &specs, |i| Ok(Cow::Borrowed(&data[i]))).unwrap()
}

#[test]
fn what_is_written_is_read_back() {
    let metadata = sample_metadata();
    let bytes = sample(&metadata);
    assert_eq!(bytes, sample(&metadata), "the same input gives the same bytes");
    let file = Gguf::from_bytes(bytes.clone(), "sample").unwrap();
    assert_eq!(file.metadata(), &metadata);
    let (specs, data) = sample_tensors();
    for (i, spec) in specs.iter().enumerate() {
        let tensor = &file.tensors()[i];
        assert_eq!((&tensor.name, &tensor.shape, tensor.ty), (&spec.name, &spec.shape, spec.ty));
        assert_eq!(file.data(tensor), data[i]);
        assert_eq!((tensor.offset - file.data_offset()) % 32, 0);
        assert_eq!(file.tensor(&spec.name), Some(tensor));
    }

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sample.gguf");
    let written = write(&path, &metadata, &specs, |i| Ok(Cow::Borrowed(&data[i]))).unwrap();
    assert_eq!(fs_err::read(&path).unwrap(), bytes);
    assert_eq!(written, bytes.len() as u64);
    let mapped = Gguf::open(&path).unwrap();
    assert!(mapped.is_mapped());
    let address = mapped.bytes().as_ptr();
    let moved = Box::new(mapped);
    assert_eq!(moved.bytes().as_ptr(), address, "moving the owner moves no bytes");
    assert_eq!(moved.data(&moved.tensors()[1]), data[1]);
}

#[test]
fn keeps_another_alignment() {
    let mut metadata = sample_metadata();
    metadata.set("general.alignment", Value::U32(128));
    let file = Gguf::from_bytes(sample(&metadata), "sample").unwrap();
    assert_eq!(file.alignment(), 128);
    assert!(file.tensors().iter().all(|t| t.offset.is_multiple_of(128)));
}

#[test]
fn writer_rejects_what_gguf_cannot_hold() {
    let spec = |name: &str, shape: &[usize], ty| {
        vec![TensorSpec { name: name.into(), shape: shape.to_vec(), ty }]
    };
    let twice = [spec("a", &[1], GgmlType::F32), spec("a", &[1], GgmlType::F32)].concat();
    let long = "n".repeat(64);
    for (specs, words) in [
        (spec(&long, &[1], GgmlType::F32), "1 to 63 bytes"),
        (spec("", &[1], GgmlType::F32), "1 to 63 bytes"),
        (spec("a", &[1, 1, 1, 1, 1], GgmlType::F32), "one to four"),
        (spec("a", &[2, 33], GgmlType::Q8_0), "multiple of 32"),
        (twice, "found twice"),
        (spec("a", &[4], GgmlType::F32), "expected 16 bytes"),
    ] {
        let result = to_bytes(Path::new("out.gguf"), &Metadata::new(), &specs, |_| {
            Ok(Cow::Owned(vec![0; 4]))
        });
        let text = result.unwrap_err().to_string();
        assert!(text.contains(words) && text.starts_with("out.gguf: "), "{text}");
    }
}

#[test]
fn rejects_counts_beyond_the_file() {
    rejects("gguf-counts/tensors.gguf", &["tensors", "1152921504606846976"]);
    rejects("gguf-counts/keys.gguf", &["keys", "2305843009213693952"]);
    rejects("gguf-counts/array.gguf", &["tokenizer.ggml.tokens", "4611686018427387904"]);
    rejects("gguf-counts/dims.gguf", &["token_embd.weight", "1 to 4", "200"]);
    rejects("gguf-counts/version.gguf", &["version", "9"]);
}

#[test]
fn rejects_a_size_that_wraps() {
    rejects("gguf-size-wraps/wrap.gguf", &["output_norm.weight", "1073741825"]);
}

#[test]
fn rejects_alignment_zero() {
    rejects("gguf-alignment/zero.gguf", &["general.alignment", "found 0"]);
}

#[test]
fn rejects_alignment_that_is_no_power_of_two() {
    rejects("gguf-alignment/odd.gguf", &["general.alignment", "found 24"]);
}

#[test]
fn rejects_alignment_of_another_type_or_beyond_belief() {
    rejects("gguf-alignment/type.gguf", &["general.alignment", "found -32"]);
    rejects("gguf-alignment/huge.gguf", &["general.alignment", "found 2147483648"]);
}

#[test]
fn rejects_hostile_strings() {
    rejects("gguf-strings/length.gguf", &["key 0", "18446744073709551615"]);
    rejects("gguf-strings/value.gguf", &["general.architecture", "1099511627776"]);
    rejects("gguf-strings/utf8.gguf", &["general.name", "UTF-8"]);
    rejects("gguf-strings/empty.gguf", &["key 1", "empty"]);
}

#[test]
fn rejects_a_git_lfs_pointer() {
    rejects("st-lfs-pointer/model.gguf", &["Git LFS pointer", "52193280 bytes"]);
}

#[test]
fn rejects_every_truncation() {
    let bytes = sample(&sample_metadata());
    // the last tensor has 60 bytes and 4 of padding, which may be missing
    for length in 0..bytes.len() - 4 {
        let cut = bytes[..length].to_vec();
        assert!(Gguf::from_bytes(cut, "cut").is_err(), "cut to {length} of {}", bytes.len());
    }
    assert!(Gguf::from_bytes(bytes[..bytes.len() - 4].to_vec(), "cut").is_ok());
}

#[test]
fn no_damaged_byte_makes_it_panic() {
    let bytes = sample(&sample_metadata());
    for at in 0..bytes.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut damaged = bytes.clone();
            damaged[at] ^= flip;
            if let Ok(file) = Gguf::from_bytes(damaged, "damaged") {
                let total: usize = file.tensors().iter().map(|t| file.data(t).len()).sum();
                assert!(total <= bytes.len());
            }
        }
    }
}

/// A file of raw parts, for faults that the writer refuses to make.
fn raw(tensors: &[(&str, &[i64], u32, u64)], keys: &[(&str, u32, &[u8])], data: usize) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as i64).to_le_bytes());
    out.extend((keys.len() as i64).to_le_bytes());
    let string = |out: &mut Vec<u8>, text: &str| {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    };
    for (key, ty, value) in keys {
        string(&mut out, key);
        out.extend(ty.to_le_bytes());
        out.extend(*value);
    }
    for (name, shape, ty, offset) in tensors {
        string(&mut out, name);
        out.extend((shape.len() as u32).to_le_bytes());
        shape.iter().for_each(|n| out.extend(n.to_le_bytes()));
        out.extend(ty.to_le_bytes());
        out.extend(offset.to_le_bytes());
    }
    out.resize(out.len().next_multiple_of(32) + data, 0);
    out
}

fn rejects_raw(bytes: Vec<u8>, words: &[&str]) {
    check_refused(Gguf::from_bytes(bytes, "raw.gguf"), "raw.gguf", words);
}

#[test]
fn rejects_a_key_that_is_there_twice() {
    let keys: [(&str, u32, &[u8]); 2] = [("a.b", 0, &[1]), ("a.b", 0, &[2])];
    rejects_raw(raw(&[], &keys, 0), &["a.b", "twice"]);
}

#[test]
fn rejects_a_tensor_that_is_there_twice() {
    rejects_raw(raw(&[("a", &[1], 0, 0), ("a", &[1], 0, 32)], &[], 64), &["tensor a", "twice"]);
}

#[test]
fn rejects_offsets_that_are_not_the_running_sum() {
    for second in [0, 4, 16, 64, u64::MAX] {
        rejects_raw(
            raw(&[("a", &[1], 0, 0), ("b", &[1], 0, second)], &[], 128),
            &["tensor b", "expected offset 32", &second.to_string()],
        );
    }
}

#[test]
fn rejects_negative_and_zero_counts() {
    rejects_raw(raw(&[("a", &[-1], 0, 0)], &[], 64), &["tensor a", "dimensions of 1 and more"]);
    rejects_raw(raw(&[("a", &[4, 0], 0, 0)], &[], 64), &["tensor a", "dimensions of 1 and more"]);
    rejects_raw(raw(&[("a", &[], 0, 0)], &[], 64), &["tensor a", "1 to 4 dimensions"]);
    for at in [8, 16] {
        let mut bytes = raw(&[], &[], 64);
        bytes[at..at + 8].copy_from_slice(&(-1i64).to_le_bytes());
        rejects_raw(bytes, &["found a count of -1"]);
    }
}

#[test]
fn rejects_unknown_types() {
    rejects_raw(raw(&[("a", &[4], 4, 0)], &[], 64), &["tensor a", "id 4"]); // Q4_2, long removed
    rejects_raw(raw(&[("a", &[4], 4_000_000, 0)], &[], 64), &["tensor a", "id 4000000"]);
    let keys: [(&str, u32, &[u8]); 1] = [("a.b", 13, &[0])];
    rejects_raw(raw(&[], &keys, 64), &["a.b", "value type", "13"]);
    let nested: [(&str, u32, &[u8]); 1] = [("a.b", 9, &[9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0])];
    rejects_raw(raw(&[], &nested, 64), &["a.b", "nested"]);
    let two: [(&str, u32, &[u8]); 1] = [("a.b", 7, &[2])];
    rejects_raw(raw(&[], &two, 64), &["a.b", "bool"]);
}

#[test]
fn rejects_rows_that_do_not_divide_into_blocks() {
    rejects_raw(raw(&[("a", &[33], 8, 0)], &[], 64), &["tensor a", "multiple of 32", "Q8_0", "33"]);
}

#[test]
fn rejects_a_long_name() {
    let name = "n".repeat(64);
    rejects_raw(raw(&[(&name, &[1], 0, 0)], &[], 64), &["tensor 0", "63", "64"]);
}

#[test]
fn rejects_another_format() {
    rejects_raw(b"PK\x03\x04 and so on".to_vec(), &["magic"]);
    rejects_raw(Vec::new(), &["magic", "truncated"]);
    let mut big_endian = raw(&[], &[], 0);
    big_endian[4..8].copy_from_slice(&3u32.to_be_bytes());
    rejects_raw(big_endian, &["big-endian"]);
}
