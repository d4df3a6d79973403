#![expect(clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "tests may panic")]

use sha2::{Digest, Sha256};

use super::*;

fn case(path: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/cases/files")).join(path)
}

fn digest(file: &Pth, tensor: &PthTensor) -> String {
    let data = file.data(tensor);
    let single = crate::tensor::convert(data, tensor.dtype, Dtype::F32);
    Sha256::digest(&single[..]).iter().map(|b| format!("{b:02x}")).collect()
}

/// Opens a case's file and compares shapes and digests of all tensors with expect.json.
fn equals_case(folder: &str, name: &str) -> Pth {
    let file = Pth::open(case(folder).join(name)).unwrap();
    let expected = fs_err::read_to_string(case(folder).join("expect.json")).unwrap();
    let expected: serde_json::Value = serde_json::from_str(&expected).unwrap();
    let tensors = expected["tensors"].as_object().unwrap();
    assert!(!tensors.is_empty());
    for (name, wanted) in tensors {
        let tensor = file.tensor(name).unwrap_or_else(|| panic!("{folder}: no {name}"));
        assert_eq!(serde_json::json!(tensor.shape), wanted["shape"], "{name}");
        assert_eq!(digest(&file, tensor), wanted["sha256"].as_str().unwrap(), "{name}");
    }
    file
}

#[test]
fn removes_a_wrappers_prefix() {
    let file = equals_case("pth-compile-prefix", "model.pth");
    assert!(file.tensors().iter().all(|t| !t.name.contains("_orig_mod")));
}

#[test]
fn takes_the_model_out_of_a_resume_file() {
    let file = equals_case("pth-resume-file", "resume.pth");
    assert_eq!(file.notes().len(), 1);
    assert!(file.notes()[0].contains("entry model is taken"), "{}", file.notes()[0]);
}

#[test]
fn obeys_strides() {
    let file = equals_case("pth-strides", "model.pth");
    assert!(file.tensors().iter().any(|t| !t.is_contiguous()), "the case has strided tensors");
}

#[test]
fn reads_two_names_of_one_storage() {
    let file = Pth::open(case("pth-tied-one-storage/model.pth")).unwrap();
    let get = |name: &str| file.data(file.tensor(name).unwrap());
    assert_eq!(get("lm_head.weight"), get("model.embed_tokens.weight"));
}

fn rejects(path: &Path, words: &[&str]) {
    let text = Pth::open(path).unwrap_err().to_string();
    assert_eq!(text.lines().count(), 1, "{text}");
    for word in words {
        assert!(text.contains(word), "expected {word:?} in: {text}");
    }
}

#[test]
fn rejects_hostile_names_without_running_them() {
    rejects(&case("pth-hostile-global/model.pth"), &["posix.system", "nothing is run"]);
}

#[test]
fn rejects_a_git_lfs_pointer_and_the_old_format() {
    rejects(&case("st-lfs-pointer/model.pth"), &["Git LFS pointer", "52193280"]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("old.pth");
    fs_err::write(&path, b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.").unwrap();
    rejects(&path, &["before 1.6"]);
    fs_err::write(&path, b"PK\x03\x04 and no directory").unwrap();
    rejects(&path, &["directory"]);
}

/// A stored zip of these entries, as torch writes them.
fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in entries {
        let local = out.len() as u32;
        let sizes = [0u32, data.len() as u32, data.len() as u32].map(u32::to_le_bytes).concat();
        out.extend(0x0403_4b50u32.to_le_bytes());
        out.extend([0; 10]); // version, flags, method 0, time
        out.extend(&sizes);
        out.extend((name.len() as u16).to_le_bytes());
        out.extend([0; 2]);
        out.extend(name.as_bytes());
        out.extend(*data);
        directory.extend(0x0201_4b50u32.to_le_bytes());
        directory.extend([0; 12]);
        directory.extend(&sizes);
        directory.extend((name.len() as u16).to_le_bytes());
        directory.extend([0; 12]);
        directory.extend(local.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let start = out.len() as u32;
    out.extend(&directory);
    out.extend(0x0605_4b50u32.to_le_bytes());
    out.extend([0; 4]);
    out.extend([entries.len() as u16; 2].map(u16::to_le_bytes).concat());
    out.extend((directory.len() as u32).to_le_bytes());
    out.extend(start.to_le_bytes());
    out.extend([0; 2]);
    out
}

/// A pickle of `{key: tensor}` over storage 0, one dimension.
fn one_tensor(key: &str, offset: u8, n: u8, stride: u8) -> Vec<u8> {
    let text = |out: &mut Vec<u8>, text: &str| {
        out.push(b'X');
        out.extend((text.len() as u32).to_le_bytes());
        out.extend(text.as_bytes());
    };
    let mut out = b"\x80\x02}".to_vec();
    text(&mut out, key);
    out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
    text(&mut out, "storage");
    out.extend(b"ctorch\nFloatStorage\n");
    text(&mut out, "0");
    text(&mut out, "cpu");
    out.extend([b'K', 4, b't', b'Q', b'K', offset, b'K', n, 0x85, b'K', stride, 0x85, 0x89]);
    out.extend(b"ccollections\nOrderedDict\n)RtRs.");
    out
}

fn open(pickle: &[u8]) -> Result<Pth> {
    let storage: Vec<u8> = (0..4).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.pth");
    fs_err::write(&path, archive(&[("a/data.pkl", pickle), ("a/data/0", &storage)])).unwrap();
    Pth::open(&path)
}

#[test]
fn rejects_views_beyond_their_storage() {
    let good = open(&one_tensor("w", 1, 2, 2)).unwrap();
    let values = good.data(good.tensor("w").unwrap()).into_owned();
    assert_eq!(values, [1f32, 3.0].map(f32::to_le_bytes).concat());
    for (offset, n, stride) in [(0, 5, 1), (4, 1, 1), (1, 2, 3), (4, 200, 0), (255, 1, 1)] {
        let text = open(&one_tensor("w", offset, n, stride)).unwrap_err().to_string();
        assert!(text.contains("tensor w: expected a view within the 4 elements"), "{text}");
    }
}

#[test]
fn a_view_that_shows_one_value_many_times_is_read_up_to_a_bound() {
    let expanded = open(&one_tensor("w", 1, 200, 0)).unwrap();
    let values = expanded.data(expanded.tensor("w").unwrap()).into_owned();
    assert_eq!(values, [1f32; 200].map(f32::to_le_bytes).concat());
    let view = |n: usize| pickle::TensorView {
        storage: "0".into(),
        dtype: Kind::Known(Dtype::F32),
        offset: 0,
        shape: vec![n, 2],
        stride: vec![0, 1],
    };
    assert!(place("w", &view(MAX_EXPANDED / 2), Dtype::F32, 0..16).is_ok());
    let text = place("w", &view(MAX_EXPANDED / 2 + 1), Dtype::F32, 0..16).unwrap_err();
    assert!(text.contains("tensor w: expected a view within the 4 elements"), "{text}");
}

#[test]
fn rejects_pickles_that_are_no_state_dict() {
    for (pickle, words) in [
        (&b"\x80\x02]."[..], "expected a dict"),
        (b"\x80\x02}.", "keys"),
        (b"\x80\x02N", "truncated"),
        (b"\x80\x09.", "protocol"),
        (b"a", "expected a value"),
        (b"cos\nsystem\n.", "os.system"),
        (b"\x8c\x02os\x8c\x06system\x93.", "os.system"),
        (b"(i.", "opcode"),
        (b"h\x05.", "memo 5"),
    ] {
        let text = open(pickle).unwrap_err().to_string();
        assert!(text.contains(words), "expected {words:?} in: {text}");
    }
}

#[test]
fn rejects_two_keys_that_fall_together() {
    let mut both = one_tensor("w", 0, 1, 1);
    let other = one_tensor("_orig_mod.w", 1, 1, 1);
    both.pop(); // the end
    both.extend(&other[3..]); // after protocol and dict
    let text = open(&both).unwrap_err().to_string();
    assert!(text.contains("keys w and _orig_mod.w"), "{text}");
}

#[test]
fn no_damaged_byte_makes_it_panic() {
    let bytes = fs_err::read(case("pth-strides/model.pth")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("damaged.pth");
    // the pickle at the front and the directory at the end, every third byte
    for at in (0..1400).chain(bytes.len() - 1500..bytes.len()).step_by(3) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x81;
        fs_err::write(&path, &damaged).unwrap();
        if let Ok(file) = Pth::open(&path) {
            let total: usize = file.tensors().iter().map(|t| file.data(t).len()).sum();
            assert!(total <= 4 * bytes.len());
        }
    }
    for length in (0..bytes.len()).step_by(211) {
        fs_err::write(&path, &bytes[..length]).unwrap();
        assert!(Pth::open(&path).is_err(), "cut to {length}");
    }
}

#[test]
fn deep_nesting_does_not_overflow_the_stack() {
    let mut pickle = b"\x80\x02N".to_vec();
    pickle.extend(std::iter::repeat_n(0x85, 1_000_000)); // a tuple of a tuple of ...
    pickle.push(b'.');
    assert!(open(&pickle).is_err());
}
