//! Tables as data: Parquet and CSV files give the samples of the same records as JSON Lines, and what is wrong with one
//! is said with its place. The Parquet files are pyarrow's: scripts/golden/tables.py.

mod common;

use std::io::Write as _;
use std::path::{Path, PathBuf};

use common::{mmx, mmx_error, mmx_json, mmx_ok, shared, text};
use mmx_data::{Fields, Kind, blocks::Blocks, forms};
use serde_json::{Value, json};

fn table(name: &str) -> PathBuf {
    shared("tables").join(name)
}

/// `mmx data check` with a tokenizer.
fn checked(stage: &str, path: &Path, more: &[&str]) -> Value {
    let tokenizer = shared("golden-2026");
    let args = ["data", "check", "--stage", stage, "--tokenizer", text(&tokenizer), text(path)];
    mmx_json(&[&args[..], more].concat())
}

fn records(path: &Path) -> Vec<serde_json::Map<String, Value>> {
    let lines = fs_err::read_to_string(path).expect("a fixture");
    lines.lines().map(|line| serde_json::from_str(line).expect("an object")).collect()
}

/// Records as a table: lists as their texts.
fn csv_of(records: &[serde_json::Map<String, Value>], separator: char) -> String {
    let cell = |value: &Value| {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        format!("\"{}\"", text.replace('"', "\"\""))
    };
    let names: Vec<&str> = records[0].keys().map(String::as_str).collect();
    let separator = separator.to_string();
    let row = |record: &serde_json::Map<String, Value>| {
        names.iter().map(|name| cell(&record[*name])).collect::<Vec<_>>().join(&separator)
    };
    let rows: Vec<String> = records.iter().map(row).collect();
    format!("\u{feff}{}\r\n{}\r\n", names.join(&separator), rows.join("\r\n"))
}

#[test]
fn every_form_of_the_same_records_has_the_same_samples() {
    let dir = tempfile::tempdir().expect("a folder");
    for (stage, lines, tables) in [
        (
            "pretrain",
            "texts.jsonl",
            &[
                "texts-none",
                "texts-snappy",
                "texts-gzip",
                "texts-zstd",
                "texts-lz4",
                "texts-v2",
                "texts-large",
                "texts-binary",
                "texts-dictionary",
            ][..],
        ),
        (
            "sft",
            "chats.jsonl",
            &[
                "chats",
                "chats-messages",
                "chats-sharegpt",
                "chats-columns",
                "chats-text",
                "chats-datasets",
            ],
        ),
        ("sft", "pairs.jsonl", &["pairs-alpaca", "pairs-prompt", "pairs-prompt-turns"]),
        (
            "dpo",
            "preferences.jsonl",
            &[
                "preferences",
                "preferences-prompt",
                "preferences-whole",
                "preferences-turns",
                "preferences-messages",
            ],
        ),
    ] {
        let lines = table(lines);
        let records = records(&lines);
        let expected = checked(stage, &lines, &[])["samples_sha256"].clone();
        assert_eq!(expected.as_str().map(str::len), Some(64), "{expected}");
        let mut files: Vec<PathBuf> =
            tables.iter().map(|name| table(&format!("{name}.parquet"))).collect();
        let mut made = |name: &str, content: &[u8]| {
            let path = dir.path().join(format!("{stage}-{}-{name}", records.len()));
            fs_err::write(&path, content).expect("a file");
            files.push(path);
        };
        let comma = csv_of(&records, ',');
        made("a.csv", comma.as_bytes());
        made("by-content", csv_of(&records, ';').as_bytes());
        made("a.tsv", csv_of(&records, '\t').as_bytes());
        made("a.json", json!(records).to_string().as_bytes());
        made("a.csv.zst", &zstd::encode_all(comma.as_bytes(), 1).expect("packed"));
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(comma.as_bytes()).expect("packed");
        made("a.csv.gz", &gzip.finish().expect("packed"));
        for path in files {
            let found = checked(stage, &path, &[]);
            assert_eq!(found["samples"], records.len(), "{}", path.display());
            assert_eq!(found["samples_sha256"], expected, "{}", path.display());
        }
    }
}

#[test]
fn keys_of_other_names_are_mapped() {
    for (stage, lines, other, fields) in [
        ("pretrain", "texts.jsonl", "body.parquet", &["text=page.body"][..]),
        (
            "sft",
            "pairs.jsonl",
            "pairs-other-names.parquet",
            &["instruction=question", "output=answers.best"],
        ),
    ] {
        let options: Vec<&str> = fields.iter().flat_map(|pair| ["--field", pair]).collect();
        let found = checked(stage, &table(other), &options);
        assert_eq!(
            found["samples_sha256"],
            checked(stage, &table(lines), &[])["samples_sha256"],
            "{other}"
        );
    }
    let path = table("body.parquet");
    let args = ["data", "check", "--stage", "pretrain", text(&path)];
    let out = mmx(&[&args[..], &["--field", "body=title"]].concat());
    let said = String::from_utf8(out.stderr).expect("UTF-8");
    assert_eq!(out.status.code(), Some(2), "{said}");
    assert!(said.contains("--field: expected one of the names text, conversations"), "{said}");
}

#[test]
fn a_check_says_the_form_and_shows_three_records() {
    let path = table("chats-sharegpt.parquet");
    let said = mmx_ok(&["data", "check", "--stage", "sft", text(&path)]);
    assert!(said.starts_with("6 records\n"), "{said}");
    let form = format!("{}: Parquet: ShareGPT (conversations)", path.display());
    let shown: Vec<&str> = said.lines().skip_while(|line| **line != form).collect();
    assert_eq!(
        shown[1..3],
        ["   1  user: What, then?", "      assistant: This: \"that\", and more"],
        "{said}"
    );
    assert!(shown.iter().any(|line| line.starts_with("   3  user: two lines")), "{said}");
    assert!(!shown.iter().any(|line| line.starts_with("   4")), "{said}");

    let found =
        mmx_json(&["data", "check", "--stage", "dpo", text(&table("preferences-prompt.parquet"))]);
    let file = &found["files"][0];
    assert_eq!(file["kind"], "Parquet");
    assert_eq!(
        file["forms"],
        json!([{"name": "prompt, chosen, rejected", "keys": ["prompt", "chosen", "rejected"]}])
    );
    assert_eq!(file["samples"].as_array().map(Vec::len), Some(3));
    assert_eq!(
        file["samples"][0]["record"]["chosen"][0],
        json!({"role": "user", "content": "What, then?"})
    );
}

#[test]
fn a_table_of_an_unknown_form_is_refused_once_with_its_columns_and_the_forms_known() {
    let dir = tempfile::tempdir().expect("a folder");
    let csv = dir.path().join("qa.csv");
    fs_err::write(&csv, "question,answer\n1,2\n3,4\n").expect("a file");
    for path in [csv, table("pairs-other-names.parquet")] {
        for more in [&[][..], &["--tokenizer", text(&shared("golden"))]] {
            let out = mmx(&[&["data", "check", "--stage", "sft", text(&path)], more].concat());
            let said = String::from_utf8(out.stderr).expect("UTF-8");
            assert_eq!(out.status.code(), Some(1), "{said}");
            let words = format!(
                "{}: expected column conversations, found question, answer",
                path.display()
            );
            assert!(said.contains(&words) && out.stdout.is_empty(), "{said}");
            assert!(
                said.contains("Alpaca (instruction, output)") && said.contains("--field NAME=KEY"),
                "{said}"
            );
        }
    }
    let line = mmx_error(&["data", "check", "--stage", "sft", text(&table("texts-none.parquet"))]);
    assert!(line.contains("found id, text; this looks like pretraining data"), "{line}");
}

#[test]
fn faults_of_rows_name_row_and_line() {
    let dir = tempfile::tempdir().expect("a folder");
    let csv = dir.path().join("a.csv");
    fs_err::write(&csv, b"text,id\n\"a\nb\",1\nc\ncaf\xe9,3\nd,4\n").expect("a file");
    let name = csv.display();
    let out = mmx(&["data", "check", "--stage", "pretrain", text(&csv)]);
    let said = String::from_utf8(out.stdout).expect("UTF-8");
    for line in [
        format!("{name}:4: record 2: expected 2 cells as in the header, found 1"),
        format!(
            "{name}:5: record 3: column text: expected UTF-8, found byte 0xe9 after 3 bytes of text"
        ),
    ] {
        assert!(said.lines().any(|found| found == line), "{line}: {said}");
    }
    assert_eq!(out.status.code(), Some(1));

    for (file, row, words) in [
        ("texts-null.parquet", 2, "key text: expected a string, found null"),
        (
            "texts-latin1-binary.parquet",
            2,
            "column text: expected UTF-8, found byte 0xe9 after 3 bytes of text",
        ),
    ] {
        let path = table(file);
        let out = mmx(&["data", "check", "--stage", "pretrain", text(&path), "--json"]);
        let found: Value = serde_json::from_slice(&out.stdout).expect("JSON");
        assert_eq!(
            (&found["samples"], &found["faults"][0]["line"]),
            (&json!(2), &Value::Null),
            "{found}"
        );
        assert_eq!(found["faults"][0]["record"], row, "{found}");
        assert_eq!(found["faults"][0]["message"], words, "{found}");
        let out = mmx(&["data", "check", "--stage", "pretrain", text(&path)]);
        let said = String::from_utf8(out.stdout).expect("UTF-8");
        assert!(said.starts_with(&format!("{}: row {row}: {words}\n", path.display())), "{said}");
        assert_eq!(out.status.code(), Some(1), "{said}");
    }
}

#[test]
fn files_that_cannot_be_read_are_refused_in_a_sentence() {
    let dir = tempfile::tempdir().expect("a folder");
    let whole = fs_err::read(table("texts-zstd.parquet")).expect("a fixture");
    let cut = dir.path().join("cut.parquet");
    fs_err::write(&cut, &whole[..whole.len() - 20]).expect("a file");
    let open = dir.path().join("open.csv");
    fs_err::write(&open, "text,id\na,1\n\"b,2\nc,3\n").expect("a file");
    for (path, words) in [
        (cut, "expected a whole Parquet file, found one that is damaged or cut off"),
        (table("encrypted.parquet"), "found an encrypted"),
        (
            table("encrypted-column.parquet"),
            "found one that is damaged, or whose columns are encrypted",
        ),
        (
            table("texts-brotli.parquet"),
            "expected a Parquet file packed by Snappy, gzip, zstd, LZ4 or not at all",
        ),
        (table("texts-latin1.parquet"), "row 2: expected UTF-8 in a column of strings"),
        (table("texts-empty.parquet"), "expected at least one record, found none"),
        (open, "line 3: expected the closing quote of a cell of row 2, found the end of the file"),
    ] {
        let line = mmx_error(&["data", "check", "--stage", "pretrain", text(&path)]);
        assert!(line.contains(text(&path)) && line.contains(words), "{line}");
    }
}

/// Bytes changed, taken out and cut off, of every file: records or an error, never a panic.
#[test]
fn damaged_parquet_files_never_panic() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("damaged.parquet");
    let (mut records, mut faults, mut seed) = (0, 0, 1u64);
    let mut random = |below: usize| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) as usize % below
    };
    for name in [
        "texts-none",
        "texts-snappy",
        "texts-v2",
        "texts-dictionary",
        "chats",
        "chats-columns",
        "pairs-alpaca",
    ] {
        let whole = fs_err::read(table(&format!("{name}.parquet"))).expect("a fixture");
        for round in 0..300 {
            let mut bytes = whole.clone();
            let at = 4 + random(bytes.len() - 8);
            match round % 3 {
                0 => bytes[at] ^= 1 << random(8),
                1 => bytes[at] = [0, 0x7f, 0x80, 0xff][random(4)],
                _ => drop(bytes.drain(at..(at + 1 + random(8)).min(whole.len() - 4))),
            }
            fs_err::write(&path, &bytes).expect("a file");
            let Ok(mut blocks) = Blocks::open_for(&path, &Fields::default()) else { continue };
            while let Ok(Some(block)) = blocks.next_block() {
                for line in block.lines() {
                    match forms::parse(&line, Kind::Text, &Fields::default()) {
                        Ok(_) => records += 1,
                        Err(_) => faults += 1,
                    }
                }
            }
        }
    }
    assert!(records > 1000 && faults > 100, "{records} {faults}");
    // a page that says more than it holds: the program tells it as every other fault
    let mut bytes = fs_err::read(table("texts-none.parquet")).expect("a fixture");
    let at = bytes.windows(5).position(|five| five == b"Once ").expect("a text") - 4;
    bytes[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    fs_err::write(&path, &bytes).expect("a file");
    let line = mmx_error(&["data", "check", "--stage", "pretrain", text(&path)]);
    assert!(line.contains("damaged.parquet: expected a whole Parquet file"), "{line}");
}

/// Files of 200 MB in one row group, or one array of rows, in a fraction of that.
#[cfg(target_os = "linux")]
#[test]
fn memory_does_not_grow_with_the_file() {
    use parquet::basic::Compression;
    use parquet::data_type::{ByteArray, ByteArrayType};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    const ROWS: usize = 50_000;
    const BYTES: usize = 4000;
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let text_of = |row: usize| format!("{row} {}", "word, \"and\" word ".repeat(BYTES / 16));
    let table = dir.path().join("large.parquet");
    let schema =
        parse_message_type("message m { required binary text (UTF8); required int64 id; }")
            .expect("a schema");
    let plain = WriterProperties::builder()
        .set_data_page_row_count_limit(250)
        .set_compression(Compression::UNCOMPRESSED)
        .set_dictionary_enabled(false);
    let file = fs_err::File::create(&table).expect("a file").into_parts().0;
    let mut writer =
        SerializedFileWriter::new(file, schema.into(), plain.build().into()).expect("a writer");
    let mut group = writer.next_row_group().expect("a group");
    let mut column = group.next_column().expect("a column").expect("a column");
    for row in 0..ROWS {
        let value = [ByteArray::from(text_of(row).into_bytes())];
        column.typed::<ByteArrayType>().write_batch(&value, None, None).expect("written");
    }
    column.close().expect("closed");
    let mut column = group.next_column().expect("a column").expect("a column");
    let ids: Vec<i64> = (0..ROWS as i64).collect();
    column.typed::<parquet::data_type::Int64Type>().write_batch(&ids, None, None).expect("written");
    column.close().expect("closed");
    group.close().expect("closed");
    writer.close().expect("closed");
    let csv = dir.path().join("large.csv");
    let mut out = std::io::BufWriter::new(fs_err::File::create(&csv).expect("a file"));
    out.write_all(b"id,text\n").expect("written");
    for row in 0..ROWS {
        writeln!(out, "{row},\"{}\"", text_of(row).replace('"', "\"\"")).expect("written");
    }
    drop(out.into_inner().expect("written"));
    for path in [table, csv] {
        let size = fs_err::metadata(&path).expect("a file").len();
        assert!(size >= (ROWS * BYTES) as u64, "{size}");
        let used = common::peak(&["data", "check", "--stage", "pretrain", text(&path)]);
        assert!(used < size / 3, "{}: {used} bytes of memory for {size}", path.display());
    }
}
