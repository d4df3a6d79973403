//! Commands: what they may do, what they may not, and that whatever goes wrong is an error.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(target_os = "linux")]

use std::path::Path;
use std::time::{Duration, Instant};

use mmx_rollout::reward::{Judges, Rewards};
use mmx_rollout::sandbox::{Command, Sandbox};
use mmx_rollout::tools::{Toolbox, Tools};
use mmx_rollout::{Draw, Scorer, Written};
use serde_json::{Value, json};

fn python(script: &str) -> Command {
    Command::new(["python3", "-c", script])
}

fn run(command: &Command, lines: &[&str]) -> Result<Vec<Value>, String> {
    let lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
    Sandbox::default().exchange(command, &lines).map_err(|e| e.to_string())
}

/// What a script that prints one line prints.
fn printed(script: &str) -> Value {
    run(&python(script), &["0"]).unwrap_or_else(|why| panic!("{script}: {why}")).remove(0)
}

/// Processes whose command line holds a word of this test's own.
fn alive(word: &str) -> usize {
    let entries = fs_err::read_dir("/proc").unwrap().flatten();
    let lines = entries.filter_map(|entry| fs_err::read(entry.path().join("cmdline")).ok());
    lines.filter(|line| String::from_utf8_lossy(line).contains(word)).count()
}

#[test]
fn lines_go_in_and_values_come_out_in_order() {
    let script = "import sys, json\nfor line in sys.stdin: print(json.dumps(json.loads(line) * 2))";
    assert_eq!(run(&python(script), &["1", "2", "3"]), Ok(vec![json!(2), json!(4), json!(6)]));
}

#[test]
fn a_command_has_a_directory_of_its_own_that_is_gone_afterwards() {
    let script = "import os, json\nopen('a', 'w').write('x' * 9)\nos.mkdir('b')\nopen('b/c', 'w')\n\
                  print(json.dumps([os.getcwd(), os.environ['HOME'], sorted(os.listdir('.'))]))";
    let found = printed(script);
    let own = found[0].as_str().unwrap();
    assert_eq!(found, json!([own, own, ["a", "b"]]));
    assert!(!Path::new(own).exists());
    let secret = "import os, json\nprint(json.dumps(sorted(os.environ)))";
    let names = printed(secret);
    let known = ["HOME", "LANG", "LC_ALL", "LC_CTYPE", "PATH", "PWD", "SHLVL", "TMPDIR", "_"];
    let names = names.as_array().unwrap();
    assert!(names.iter().all(|name| known.contains(&name.as_str().unwrap())), "{names:?}");
}

#[test]
fn nothing_outside_can_be_written_removed_or_changed() {
    let folder = tempfile::tempdir().unwrap();
    // open to everybody: what keeps it is the sandbox alone
    let open = |path: &Path| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    };
    let file = folder.path().join("kept");
    fs_err::write(&file, "before").unwrap();
    open(folder.path());
    open(&file);
    let path = file.display();
    let dir = folder.path().display();
    for change in [
        format!("open('{path}', 'w')"),
        format!("open('{path}', 'a')"),
        format!("os.remove('{path}')"),
        format!("os.rename('{path}', '{path}2')"),
        format!("os.truncate('{path}', 0)"),
        format!("os.chmod('{path}', 0)"),
        format!("os.utime('{path}', (0, 0))"),
        format!("os.link('{path}', 'own')"),
        format!("open('{dir}/new', 'w')"),
        format!("os.mkdir('{dir}/new')"),
        format!("os.symlink('/etc', '{dir}/new')"),
        "open('/tmp/mmx-sandbox-test', 'w')".to_owned(),
        "open('/dev/shm/mmx-sandbox-test', 'w')".to_owned(),
        "os.setxattr('.', 'user.a', b'1')".to_owned(),
    ] {
        let script = format!(
            "import os, json\ntry:\n  {change}\n  print('\"done\"')\nexcept OSError as e: print(json.dumps(e.strerror))"
        );
        let found = printed(&script);
        assert!(found != "done", "{change}");
    }
    assert_eq!(fs_err::read_to_string(&file).unwrap(), "before");
    assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 1);
    // to throw away is allowed
    assert_eq!(printed("open('/dev/null', 'w').write('x')\nprint(1)"), 1);
}

#[test]
fn there_is_no_network() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    for connect in [
        format!("socket.create_connection(('127.0.0.1', {port}), 2)"),
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))"
            .to_owned(),
        "socket.socket(socket.AF_UNIX)".to_owned(),
        "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)".to_owned(),
    ] {
        let script = format!(
            "import socket\ntry:\n  {connect}\n  print('\"done\"')\nexcept OSError: print('\"refused\"')"
        );
        assert_eq!(printed(&script), "refused", "{connect}");
    }
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err());
}

#[test]
fn a_command_that_sleeps_is_killed_with_everything_it_started() {
    let word = "mmx_sandbox_sleeper";
    let script = format!(
        "import subprocess, time\n'{word}'\n\
         subprocess.Popen(['python3', '-c', 'import os,time; \"{word}\"; os.setsid(); time.sleep(60)'])\ntime.sleep(60)"
    );
    let mut command = python(&script);
    command.limits.time = Duration::from_secs(2);
    let begun = Instant::now();
    let said = run(&command, &["1"]).unwrap_err();
    assert!(said.contains("expected an answer within 2 s"), "{said}");
    // not after the minute that it sleeps
    assert!(begun.elapsed() < Duration::from_secs(40));
    let gone = (0..200).any(|_| {
        std::thread::sleep(Duration::from_millis(20));
        alive(word) == 0
    });
    assert!(gone, "{} still there", alive(word));
}

#[test]
fn what_a_command_leaves_behind_ends_with_it() {
    let word = "mmx_sandbox_left";
    let script = format!(
        "import subprocess\nsubprocess.Popen(['python3', '-c', 'import os,time; \"{word}\"; os.setsid(); time.sleep(60)'])\nprint(7)"
    );
    assert_eq!(printed(&script), 7);
    let gone = (0..200).any(|_| {
        std::thread::sleep(Duration::from_millis(20));
        alive(word) == 0
    });
    assert!(gone);
}

#[test]
fn a_command_that_forks_without_end_gets_no_further_than_its_limit() {
    let script = "import os, sys, time\nmade = 0\ntry:\n  while made < 500:\n    if os.fork() == 0:\n      time.sleep(30)\n      os._exit(0)\n    made += 1\nexcept OSError: pass\nprint(made)";
    let mut command = python(script);
    command.limits.processes = 8;
    let made = run(&command, &["1"]).unwrap()[0].as_u64().unwrap();
    assert!((1..=8).contains(&made), "{made}");
    // a bomb: it never ends by itself
    let bomb = "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass";
    let mut command = python(bomb);
    command.limits.time = Duration::from_secs(1);
    command.limits.processes = 8;
    assert!(run(&command, &["1"]).is_err());
}

#[test]
fn a_command_that_fills_memory_or_the_disk_fails() {
    let mut command = python("a = []\nwhile True: a.append(bytearray(1 << 20))");
    command.limits.memory_bytes = 256 << 20;
    let said = run(&command, &["1"]).unwrap_err();
    assert!(said.contains("MemoryError"), "{said}");
    let mut command = python("f = open('big', 'wb')\nwhile True: f.write(bytes(1 << 16))");
    command.limits.file_bytes = 1 << 20;
    let said = run(&command, &["1"]).unwrap_err();
    assert!(said.contains("File too large") || said.contains("signal 25"), "{said}");
    let mut command = python("while True: print('x' * 1000)");
    command.limits.output_bytes = 1 << 16;
    let said = run(&command, &["1"]).unwrap_err();
    assert!(said.contains("expected at most 65536 bytes of output"), "{said}");
}

#[test]
fn a_command_that_burns_time_is_ended_by_it() {
    let mut command = python("while True: pass");
    command.limits.time = Duration::from_secs(1);
    assert!(run(&command, &["1"]).is_err());
}

#[test]
fn garbage_too_little_and_too_much_are_errors() {
    for (script, words) in [
        ("print('garbage')", "expected a JSON value a line, found \"garbage\""),
        ("import sys; sys.stdout.buffer.write(b'\\xff\\n')", "found no UTF-8"),
        ("pass", "expected 2 lines, one for each read, found 0"),
        ("print(1)", "expected 2 lines, one for each read, found 1"),
        ("print(1); print(2); print(3)", "expected 2 lines, one for each read, found 3"),
        ("import sys; sys.exit(3)", "expected exit code 0, found 3"),
        ("raise ValueError('a reason')", "it said: Traceback"),
        ("import os; os.kill(os.getpid(), 9)", "expected exit code 0, found"),
    ] {
        let found = run(&python(script), &["1", "2"]);
        assert!(found.as_ref().is_err_and(|said| said.contains(words)), "{script}: {found:?}");
    }
    let said = run(&Command::new(["mmx-no-such-program"]), &["1"]).unwrap_err();
    assert!(said.contains("mmx-no-such-program") && said.contains("cannot be started"), "{said}");
}

#[test]
fn other_processes_are_out_of_sight() {
    // its own number and the shell's environment are all it can learn
    let script = "import os, json\nout = []\nfor p in os.listdir('/proc'):\n  if p.isdigit() and int(p) != os.getpid():\n    try: out.append(open('/proc/%s/environ' % p).read())\n    except OSError: pass\nprint(json.dumps(out))";
    assert_eq!(printed(script), json!([]));
    let outside = std::process::id();
    let script = format!(
        "import os\ntry:\n  os.kill({outside}, 0)\n  print('\"done\"')\nexcept OSError: print('\"refused\"')"
    );
    assert_eq!(printed(&script), "refused");
}

fn draw() -> Draw {
    Draw {
        sample: 0,
        task: Default::default(),
        messages: vec![json!({"role": "user", "content": "?"})],
        options: mmx_converters::chat::Options::generation(),
        thinking: false,
        text: String::new(),
        prompt: vec![1],
        full_len: 1,
    }
}

#[test]
fn a_command_rewards_a_group_at_once_and_its_failure_is_no_zero() {
    let folder = tempfile::tempdir().unwrap();
    let open = |path: &Path| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    let script = "import sys, json\nlines = [json.loads(line) for line in sys.stdin]\nfor l in lines:\n  n = len(l['answer'])\n  print(json.dumps({'reward': n / len(lines), 'length': n}))\n";
    let file = folder.path().join("reward.py");
    fs_err::write(&file, script).unwrap();
    open(folder.path());
    open(&file);
    let spec = json!([{"type": "command", "command": ["python3", "{dir}/reward.py"], "weight": 2}]);
    let path = folder.path().join("rewards.json");
    fs_err::write(&path, spec.to_string()).unwrap();
    let rewards = Rewards::open(&path, Judges::default(), Sandbox::default()).unwrap();
    let written = [Written::one_turn("ab"), Written::one_turn("<think>x</think>abcd")];
    let scores = rewards.score(&draw(), &written).unwrap();
    assert_eq!((scores[0].reward, scores[1].reward), (2.0, 4.0));
    let part = |name: &str, value| (name.to_owned(), value);
    assert_eq!(scores[1].parts, [part("command", 2.0), part("command/length", 4.0)]);
    for (script, words) in [
        ("print('nan')", "expected a JSON value"),
        ("import sys\nfor line in sys.stdin: print('\"good\"')", "expected a number"),
        ("import sys\nfor line in sys.stdin: print('{}')", "expected a number"),
        ("import sys\nfor line in sys.stdin: print('1e999')", "number out of range"),
    ] {
        let spec = json!([{"type": "command", "command": ["python3", "-c", script]}]);
        let rewards =
            Rewards::from_json(&spec, &path, folder.path(), Judges::default(), Sandbox::default());
        let said = rewards.unwrap().score(&draw(), &written).unwrap_err().to_string();
        assert!(said.contains(words), "{script}: {said}");
    }
}

#[test]
fn a_command_is_a_tool() {
    let script = "import sys, json\ncall = json.loads(sys.stdin.readline())\nprint(json.dumps({'said': call['arguments']['text'].upper()}))";
    let file = json!([{"type": "function", "function": {"name": "shout"},
        "run": {"type": "command", "command": ["python3", "-c", script], "time_s": 20}}]);
    let at = Path::new("tools.json");
    let tools = Tools::from_json(&file, at, Path::new("."), Sandbox::default()).unwrap();
    let call = |text: Value| {
        let call = json!({"name": "shout", "arguments": {"text": text}});
        tools.run(&call, &tools.shown())
    };
    assert_eq!(call(json!("ab")).unwrap().result, "{\"said\": \"AB\"}");
    // a program that fails is no fault of the run: the policy reads it
    let failed = call(json!(3)).unwrap();
    assert!(failed.is_valid && failed.result.contains("error"), "{failed:?}");
}
