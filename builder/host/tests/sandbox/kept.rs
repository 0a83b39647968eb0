//! Memory of virtual machines that end for want of use: kept, gone on from once, and thrown away when anything is not as it was.

use crate::conformance::context;
use crate::harness::{Guest, Host, Kind, WAIT, http, wait_for};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use slipway_core::generation::Generation;
use slipway_core::host_api::{EndpointPort, MachineSpec};
use slipway_core::vm::Wanted;
use std::fs;
use std::io::{BufRead, BufReader, IoSlice, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

fn host() -> Option<Host> {
    Host::start_kind_with(Kind::Vm, Guest::Docker, |settings, _| {
        settings["kept_memory"] = "4GiB".into();
    })
}

fn file(host: &Host, spec: &MachineSpec, name: &str) -> PathBuf {
    let memory = host.dir.join("state/memory");
    memory.join(spec.machine.as_str()).join(name)
}

/// Starts the next generation; gives how long it took to `/_ping`.
fn wake(host: &Host, spec: &mut MachineSpec) -> Duration {
    spec.generation = Generation(spec.generation.0 + 1);
    let began = Instant::now();
    host.client().ensure(spec).unwrap();
    let stream = host.open_when_up(spec, EndpointPort::Docker);
    assert_eq!(http(stream, "GET /_ping", b"").0, 200);
    began.elapsed()
}

/// Asks the guest to end, as the control plane asks one that is idle.
fn ask_to_end(host: &Host, spec: &MachineSpec) {
    let guest = host.open_when_up(spec, EndpointPort::Guest);
    let (status, reply) = http(guest, "POST /v1/end", b"");
    assert_eq!(status, 202, "{reply}");
}

/// How often a machine may end without its memory: a computer that is too slow for the bounds of keeping it has it end so.
const NOT_KEPT_MAX: u32 = 5;

/// Has it end for want of use; its memory is kept then.
fn end_idle(host: &Host, spec: &mut MachineSpec) {
    for ended in 1.. {
        ask_to_end(host, spec);
        let began = Instant::now();
        assert!(host.client().wait_exit(&spec.machine, WAIT), "clean");
        // As the control plane does at once.
        let forgotten = host.client().remove(&spec.machine, spec.generation.0);
        assert!(forgotten.is_ok(), "{forgotten:?}");
        assert_eq!(host.leftovers(), Vec::<String>::new());
        match fs::metadata(file(host, spec, "memory")) {
            Ok(kept) => {
                println!("kept {} MiB in {:?}", kept.blocks() >> 11, began.elapsed());
                assert_eq!((kept.mode() & 0o777, kept.uid()), (0o600, 0));
                return;
            }
            Err(error) => assert!(ended < NOT_KEPT_MAX, "{error}: {}", host.log()),
        }
        println!("not kept this time");
        wake(host, spec);
    }
}

fn build(host: &Host, spec: &MachineSpec, name: &str, more: &str) {
    let stream = host.open_when_up(spec, EndpointPort::Docker);
    let dockerfile = format!("FROM scratch\nCOPY busybox /bin/busybox\n{more}");
    let head = format!("POST /v1.45/build?t={name}");
    let (status, reply) = http(stream, &head, &context(&dockerfile));
    assert!(
        status == 200 && reply.contains("Successfully tagged"),
        "{reply}"
    );
}

/// Runs a shell command in a container with all rights; gives what it says.
pub(crate) fn inside(host: &Host, spec: &MachineSpec, script: &str) -> String {
    let post = |path: &str, body: &str| {
        let mut stream = host.open_when_up(spec, EndpointPort::Docker);
        let length = body.len();
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        reply
    };
    let container = serde_json::json!({
        "Image": "test", "Cmd": ["/bin/busybox", "sh", "-c", script], "Tty": true,
        "HostConfig": { "Privileged": true },
    });
    let made = post("/v1.45/containers/create?name=one", &container.to_string());
    assert!(made.contains(" 201 "), "{made}");
    assert!(post("/v1.45/containers/one/start", "").contains(" 204 "));
    assert!(post("/v1.45/containers/one/wait", "").contains("\"StatusCode\":0"));
    let docker = || host.open_when_up(spec, EndpointPort::Docker);
    let logs = "GET /v1.45/containers/one/logs?stdout=1&stderr=1";
    let (_, logs) = http(docker(), logs, b"");
    let (status, _) = http(docker(), "DELETE /v1.45/containers/one", b"");
    assert_eq!(status, 204);
    logs
}

/// The value of `name=` in what was said.
fn told<'a>(said: &'a str, name: &str) -> &'a str {
    let line = said.lines().find_map(|line| line.split_once(name));
    line.unwrap_or_else(|| panic!("no {name} in {said}"))
        .1
        .trim()
}

/// The time since 1970.
fn clock() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

const CLOCK_WRONG_MAX: Duration = Duration::from_secs(3);
const BOOT: &str = "/bin/busybox echo boot=$(/bin/busybox cat /proc/sys/kernel/random/boot_id)";

#[test]
fn a_machine_goes_on_from_kept_memory_once_and_boots_when_anything_has_changed() {
    let Some(host) = host() else {
        return;
    };
    let mut spec = host.machine(&mut host.client(), 1);
    build(&host, &spec, "test", "");
    let boot = inside(&host, &spec, BOOT);
    let boot = told(&boot, "boot=").to_owned();
    end_idle(&host, &mut spec);

    // Its clock stands meanwhile, for longer than it may be wrong afterwards.
    std::thread::sleep(2 * CLOCK_WRONG_MAX);
    println!("/_ping from kept memory after {:?}", wake(&host, &mut spec));
    for name in ["memory", "memory.json", "memory.next"] {
        assert!(!file(&host, &spec, name).exists(), "{name} is taken out");
    }
    let script = format!("{BOOT}; /bin/busybox date +now=%s; /bin/busybox dmesg");
    let before = clock().saturating_sub(CLOCK_WRONG_MAX).as_secs();
    let said = inside(&host, &spec, &script);
    let after = (clock() + CLOCK_WRONG_MAX).as_secs();
    assert_eq!(told(&said, "boot="), boot, "it did not boot");
    // However long the container took to start: it was asked in between.
    let now = told(&said, "now=").parse::<u64>().unwrap();
    assert!((before..=after).contains(&now), "{before} {now} {after}");
    assert!(
        said.contains("crng reseeded due to virtual machine fork"),
        "{said}"
    );
    build(
        &host,
        &spec,
        "more",
        "RUN [\"/bin/busybox\", \"touch\", \"/x\"]\n",
    );

    // What was built is on the volume, whoever looks at it; and then the memory is of no use.
    end_idle(&host, &mut spec);
    let pool = host.dir.join("pool");
    let find = Command::new("find")
        .arg(&pool)
        .args(["-type", "f", "-size", "+1G"])
        .output()
        .unwrap();
    let image = String::from_utf8_lossy(&find.stdout).trim().to_owned();
    let check = Command::new("e2fsck")
        .args(["-fn", &image])
        .output()
        .unwrap();
    assert!(check.status.success(), "{check:?}");
    let mount = tempfile_dir(&host);
    for (program, arguments) in [
        ("mount", vec!["-o", "loop", &image, &mount]),
        ("umount", vec![&mount]),
    ] {
        let done = Command::new(program).args(&arguments).output().unwrap();
        assert!(done.status.success(), "{done:?}");
    }
    println!(
        "/_ping of one that boots after {:?}",
        wake(&host, &mut spec)
    );
    assert!(host.log().contains("its volume was used meanwhile"));
    let said = inside(&host, &spec, BOOT);
    assert_ne!(told(&said, "boot="), boot);
    let stream = host.open_when_up(&spec, EndpointPort::Docker);
    assert_eq!(http(stream, "GET /images/more/json", b"").0, 200);

    // Rubbish in its place is no reason not to start.
    end_idle(&host, &mut spec);
    fs::write(file(&host, &spec, "memory"), b"rubbish").unwrap();
    wake(&host, &mut spec);
    assert!(host.log().contains("QEMU cannot read it"));
    host.client()
        .stop(&spec.machine, spec.generation.0, WAIT)
        .unwrap();
    assert!(host.client().wait_exit(&spec.machine, WAIT));
    assert!(
        !file(&host, &spec, "memory").exists(),
        "who is told to end ends"
    );
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

fn tempfile_dir(host: &Host) -> String {
    let dir = host.dir.join("mount");
    fs::create_dir_all(&dir).unwrap();
    dir.display().to_string()
}

/// QEMU's monitor, as another than the daemon has it. The file goes with the command `add-fd`: QEMU sees no directory of the host.
fn monitor(
    host: &Host,
    spec: &MachineSpec,
    commands: &[(&str, serde_json::Value)],
    file: Option<&fs::File>,
) {
    let stream = UnixStream::connect(
        host.dir
            .join("state/machines")
            .join(spec.machine.as_str())
            .join("monitor.sock"),
    )
    .unwrap();
    stream.set_read_timeout(Some(WAIT)).unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let ready = ("qmp_capabilities", serde_json::json!({}));
    for (command, arguments) in std::iter::once(&ready).chain(commands) {
        let line = serde_json::json!({ "execute": command, "arguments": arguments });
        let descriptors = match (*command, file) {
            ("add-fd", Some(file)) => vec![file.as_raw_fd()],
            _ => Vec::new(),
        };
        let line = format!("{line}\n");
        let sent = sendmsg::<()>(
            stream.as_raw_fd(),
            &[IoSlice::new(line.as_bytes())],
            &[ControlMessage::ScmRights(&descriptors)][..descriptors.len()],
            MsgFlags::empty(),
            None,
        );
        assert_eq!(sent, Ok(line.len()));
        let answer = lines.find(|line| {
            let line = line.as_ref().unwrap();
            line.contains("\"return\"") || line.contains("\"error\"")
        });
        let answer = answer.unwrap().unwrap();
        assert!(answer.contains("\"return\""), "{command}: {answer}");
    }
}

/// Kills the daemon and has the guest stand still, which it offers for some seconds when it ends for want of use.
fn stand_still(host: &mut Host, spec: &mut MachineSpec) {
    for ended in 1.. {
        let stream = host.open_when_up(spec, EndpointPort::Docker);
        assert_eq!(http(stream, "GET /_ping", b"").0, 200);
        let guest = host.open_when_up(spec, EndpointPort::Guest);
        let pid = host.pid(&spec.machine);
        host.kill_daemon();
        assert_eq!(http(guest, "POST /v1/end", b"").0, 202);
        let still = wait_for("the guest to stand still, or its end", || {
            let knocked = host.knock(&spec.machine, Wanted::Stillness);
            let stands = knocked.map(|()| true);
            stands.or_else(|| has_ended(pid).then_some(false))
        });
        if still {
            return;
        }
        // A computer that is too slow to knock in time.
        assert!(ended < NOT_KEPT_MAX, "{}", host.log());
        host.start_daemon();
        assert!(host.client().wait_exit(&spec.machine, WAIT), "clean");
        wake(host, spec);
    }
}

fn has_ended(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Whoever it belongs to now may take its time to reap it.
    stat.is_empty() || stat.contains(") Z ")
}

#[test]
fn a_daemon_killed_while_it_keeps_memory_is_followed_by_one_that_has_the_machine_end_well() {
    let Some(mut host) = host() else {
        return;
    };
    let mut spec = host.machine(&mut host.client(), 1);
    end_idle(&host, &mut spec);
    let manifest = fs::read(file(&host, &spec, "memory.json")).unwrap();
    wake(&host, &mut spec);
    // How far it had come: the guest stands still; QEMU has stopped; the memory is in its file; that is said.
    for step in 0..4 {
        stand_still(&mut host, &mut spec);
        fs::write(file(&host, &spec, "memory.next"), "").unwrap();
        if step >= 1 {
            monitor(&host, &spec, &[("stop", serde_json::json!({}))], None);
        }
        if step >= 2 {
            let memory = fs::File::create(format!("{}/{step}", tempfile_dir(&host))).unwrap();
            let set = ("add-fd", serde_json::json!({ "fdset-id": 77 }));
            let uri = serde_json::json!({ "uri": "file:/dev/fdset/77" });
            monitor(&host, &spec, &[set, ("migrate", uri)], Some(&memory));
            wait_for("the end of the migration", || {
                (memory.metadata().unwrap().len() > 0).then_some(())
            });
        }
        if step >= 3 {
            fs::rename(
                file(&host, &spec, "memory.next"),
                file(&host, &spec, "memory"),
            )
            .unwrap();
            fs::write(file(&host, &spec, "memory.json"), &manifest).unwrap();
        }
        host.start_daemon();
        let clean = host.client().wait_exit(&spec.machine, WAIT);
        assert!(clean, "step {step}: {}", host.log());
        for name in ["memory", "memory.json", "memory.next"] {
            assert!(!file(&host, &spec, name).exists(), "{step}: {name}");
        }
        assert_eq!(host.leftovers(), Vec::<String>::new());
        wake(&host, &mut spec);
    }
}
