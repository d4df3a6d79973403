//! Tests of reading and writing, and of what is refused.

use std::borrow::Cow;

use super::*;

fn case(path: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/cases/files")).join(path)
}

fn check_refused(result: Result<SafeTensors>, words: &[&str]) {
    let text = result.map(|_| ()).unwrap_err().to_string();
    assert_eq!(text.lines().count(), 1, "{text}");
    for word in words {
        assert!(text.contains(word), "expected {word:?} in: {text}");
    }
}

fn rejects(path: &str, words: &[&str]) {
    let file = case(path);
    assert!(file.is_file(), "missing fixture {}", file.display());
    check_refused(SafeTensors::open(&file), words);
    check_refused(SafeTensors::open(&file), &[path.rsplit('/').next().unwrap()]);
}

fn raw(header: &str, data: usize) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    out.resize(out.len() + data, 7);
    out
}

#[test]
fn rejects_hostile_header_lengths() {
    rejects("st-header-length/max.safetensors", &["18446744073709551615"]);
    rejects("st-header-length/beyond.safetensors", &["1099511627776"]);
    rejects("st-header-length/short.safetensors", &["found a file of 5 bytes"]);
    rejects("st-header-length/notjson.safetensors", &["JSON header"]);
    rejects("st-header-length/zero.safetensors", &["declared length of 0"]);
}

#[test]
fn rejects_shapes_that_disagree_with_offsets() {
    let file = |name: &str| format!("st-shape-vs-offsets/{name}.safetensors");
    rejects(&file("small-range"), &["model.norm.weight", "4000000 bytes", "16 bytes"]);
    rejects(&file("overflow"), &["expected", "bytes for F32"]);
    rejects(&file("reversed"), &["model.norm.weight", "[16, 8]"]);
    rejects(&file("dtype"), &["model.norm.weight", "F99"]);
}

#[test]
fn rejects_a_git_lfs_pointer() {
    rejects("st-lfs-pointer/model.safetensors", &["Git LFS pointer", "52193280 bytes"]);
}

#[test]
fn rejects_a_missing_shard_by_name() {
    let folder = case("st-index-missing-shard");
    check_refused(
        SafeTensors::open_folder(folder),
        &["model.safetensors.index.json", "model-00002-of-00002.safetensors"],
    );
}

#[test]
fn rejects_overlaps_gaps_and_duplicates() {
    let entry = |name: &str, start: usize, end: usize| {
        let n = (end - start) / 4;
        format!(r#""{name}":{{"dtype":"F32","shape":[{n}],"data_offsets":[{start},{end}]}}"#)
    };
    let file = |entries: &[String], data: usize| {
        SafeTensors::from_bytes(raw(&format!("{{{}}}", entries.join(",")), data), "raw")
    };
    assert!(file(&[entry("b", 8, 16), entry("a", 0, 8)], 16).is_ok());
    check_refused(file(&[entry("a", 0, 8), entry("b", 4, 12)], 12), &["tensor b", "at 8"]);
    check_refused(file(&[entry("a", 0, 8), entry("b", 12, 16)], 16), &["tensor b", "at 8"]);
    check_refused(file(&[entry("a", 4, 8)], 8), &["tensor a", "at 0"]);
    check_refused(file(&[entry("a", 0, 8)], 12), &["expected 8 bytes", "found 12"]);
    check_refused(file(&[entry("a", 0, 8), entry("a", 8, 16)], 16), &["tensor a", "twice"]);
    check_refused(file(&[r#""a":{"dtype":"F32"}"#.into()], 0), &["tensor a", "shape"]);
}

#[test]
fn rejects_shards_outside_the_folder_and_tensors_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let index = |map: &str| {
        let text = format!(r#"{{"metadata":{{}},"weight_map":{map}}}"#);
        fs_err::write(dir.path().join(INDEX_NAME), text).unwrap();
        SafeTensors::open_folder(dir.path())
    };
    check_refused(index(r#"{"a":"../x.safetensors"}"#), &["../x.safetensors"]);
    let spec = TensorSpec { name: "a".into(), dtype: Dtype::U8, shape: vec![1] };
    for name in ["1.safetensors", "2.safetensors"] {
        let path = dir.path().join(name);
        write(&path, std::slice::from_ref(&spec), &BTreeMap::new(), |_| Ok(vec![1].into()))
            .unwrap();
    }
    assert!(index(r#"{"a":"2.safetensors"}"#).unwrap().get("a").is_some());
    check_refused(index(r#"{"b":"1.safetensors"}"#), &["tensor b", "1.safetensors"]);
    check_refused(index(r#"{"a":"1.safetensors","b":"2.safetensors"}"#), &["in two"]);
    check_refused(
        SafeTensors::open_folder(dir.path().join("none")),
        &["model.safetensors or model.safetensors.index.json"],
    );
}

#[test]
fn what_is_written_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    let specs: Vec<_> = [
        ("half", Dtype::F16, vec![3]),
        ("single", Dtype::F32, vec![2, 2]),
        ("empty", Dtype::F32, vec![0]),
    ]
    .into_iter()
    .map(|(name, dtype, shape)| TensorSpec { name: name.into(), dtype, shape })
    .collect();
    let extra = BTreeMap::from([("step".to_owned(), "12".to_owned())]);
    let data = |i: usize| Ok(Cow::Owned(vec![i as u8; specs[i].bytes()]));
    let size = write(&path, &specs, &extra, data).unwrap();
    let first = fs_err::read(&path).unwrap();
    assert_eq!(size, first.len() as u64);
    write(&path, &specs, &extra, data).unwrap();
    assert_eq!(fs_err::read(&path).unwrap(), first, "the same input gives the same bytes");
    let file = SafeTensors::open(&path).unwrap();
    assert_eq!(file.metadata()["format"], "pt");
    assert_eq!(file.metadata()["step"], "12");
    assert_eq!(file.names().collect::<Vec<_>>(), ["single", "empty", "half"]);
    let half = file.get("half").unwrap();
    assert_eq!((half.dtype, half.shape, half.data), (Dtype::F16, &[3][..], &[0; 6][..]));
    assert_eq!(file.get("single").unwrap().data, [1; 16]);
    assert!(file.get("other").is_none());
    let header = u64::from_le_bytes(first[..8].try_into().unwrap());
    assert!(header.is_multiple_of(8), "the data is aligned");
}

#[test]
fn a_tensor_of_any_type_of_the_format_is_described_and_the_others_are_read() {
    let types = [
        ("I8", 8),
        ("U16", 16),
        ("I16", 16),
        ("U32", 32),
        ("U64", 64),
        ("C64", 64),
        ("F4", 4),
        ("F6_E2M3", 6),
        ("F6_E3M2", 6),
        ("F8_E4M3", 8),
        ("F8_E5M2", 8),
        ("F8_E8M0", 8),
        ("F8_E4M3FNUZ", 8),
        ("F8_E5M2FNUZ", 8),
    ];
    for (name, bits) in types {
        let end = bits; // eight elements
        let header = format!(
            r#"{{"odd":{{"dtype":"{name}","shape":[2,4],"data_offsets":[0,{end}]}},"w":{{"dtype":"F32","shape":[1],"data_offsets":[{end},{}]}}}}"#,
            end + 4
        );
        let file = SafeTensors::from_bytes(raw(&header, end + 4), "raw").expect(name);
        let odd = Described { dtype: name, shape: &[2, 4], bytes: end };
        assert_eq!(file.describe("odd"), Some(odd));
        assert!(file.get("odd").is_none(), "{name} is nothing to compute with");
        assert_eq!(file.get("w").unwrap().data, [7; 4]);
        assert_eq!(file.names().collect::<Vec<_>>(), ["odd", "w"]);
    }
    let half = r#"{"odd":{"dtype":"F4","shape":[3],"data_offsets":[0,1]}}"#;
    check_refused(SafeTensors::from_bytes(raw(half, 1), "raw"), &["tensor odd", "whole bytes"]);
}

#[test]
fn the_crate_reads_what_is_written_and_writes_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    let all = [
        Dtype::F64,
        Dtype::I64,
        Dtype::F32,
        Dtype::I32,
        Dtype::Bf16,
        Dtype::F16,
        Dtype::U8,
        Dtype::Bool,
    ];
    let specs: Vec<TensorSpec> = all
        .iter()
        .map(|&dtype| TensorSpec {
            name: format!("a.{}", dtype.safetensors_name()),
            dtype,
            shape: vec![3, 2],
        })
        .collect();
    let values: Vec<u8> = (0..48).collect();
    write(&path, &specs, &BTreeMap::new(), |i| Ok(Cow::Borrowed(&values[..specs[i].bytes()])))
        .unwrap();
    let bytes = fs_err::read(&path).unwrap();
    let theirs = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let ours = SafeTensors::open(&path).unwrap();
    for spec in &specs {
        let (a, b) = (ours.get(&spec.name).unwrap(), theirs.tensor(&spec.name).unwrap());
        assert_eq!((a.shape, a.data), (b.shape(), b.data()));
        assert_eq!(Dtype::of_safetensors(b.dtype()), Some(a.dtype));
    }
    // one width, names in order: where the crate's order is that of mmx
    let specs: Vec<TensorSpec> = ["a", "b", "c"]
        .map(|name| TensorSpec { name: name.into(), dtype: Dtype::F32, shape: vec![2] })
        .to_vec();
    write(&path, &specs, &BTreeMap::new(), |i| Ok(Cow::Borrowed(&values[i..][..8]))).unwrap();
    let views = (0..3).map(|i| {
        let view = TensorView { dtype: Dtype::F32, shape: &[2], data: &values[i..][..8] };
        (specs[i].name.as_str(), view)
    });
    let format = [("format".to_owned(), "pt".to_owned())];
    let theirs = ::safetensors::serialize(views, Some(format.into())).unwrap();
    assert!(theirs == fs_err::read(&path).unwrap());
}

#[test]
fn one_file_is_read_and_the_index_beside_it_named() {
    let dir = tempfile::tempdir().unwrap();
    let spec = TensorSpec { name: "a".into(), dtype: Dtype::U8, shape: vec![1] };
    for (name, value) in [(FILE_NAME, 1), ("model-00001-of-00001.safetensors", 2)] {
        let specs = std::slice::from_ref(&spec);
        write(&dir.path().join(name), specs, &BTreeMap::new(), |_| Ok(vec![value].into())).unwrap();
    }
    let index = |shard: &str| {
        let text = format!(r#"{{"weight_map":{{"a":"{shard}"}}}}"#);
        fs_err::write(dir.path().join(INDEX_NAME), text).unwrap();
        SafeTensors::open_folder(dir.path()).unwrap()
    };
    let file = index("model-00001-of-00001.safetensors");
    assert_eq!(file.get("a").unwrap().data, [1]);
    assert!(file.notes().len() == 1 && file.notes()[0].contains(INDEX_NAME), "{file:?}");
    assert!(index(FILE_NAME).notes().is_empty(), "an index of that file alone");
}

#[test]
fn no_damaged_byte_makes_it_panic() {
    let header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    let bytes = raw(header, 8);
    for at in 0..bytes.len() {
        for flip in [0x01, 0x10, 0x80, 0xff] {
            let mut damaged = bytes.clone();
            damaged[at] ^= flip;
            let (ours, theirs) =
                (check(&damaged), ::safetensors::SafeTensors::read_metadata(&damaged));
            assert_eq!(ours.is_ok(), theirs.is_ok(), "at {at}: {ours:?}, {theirs:?}");
            let _ = SafeTensors::from_bytes(damaged, "damaged");
        }
        assert!(SafeTensors::from_bytes(bytes[..at].to_vec(), "cut").is_err());
    }
}
