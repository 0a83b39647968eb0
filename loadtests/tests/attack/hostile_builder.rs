//! A builder whose root has taken its listeners and its processes over stops neither the control plane nor other orgs, and is
//! still ended when its own org asks.

use anyhow::{Context, Result, ensure};
use slipway_loadtests::testbed::{Testbed, wait_for};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

/// Takes dockerd's listener, stops dockerd, and answers in its place, with a TCP socket attached that lingers for an hour where the
/// kernel lets it. Asked for `deaf`, it accepts no more and leaves no backlog.
const DOCKERD: &str = r#"
use strict; use Socket; $| = 1;
my ($dockerd) = grep { my $f; open($f, "<", "/proc/$_/comm") && <$f> eq "dockerd\n" } map { m{(\d+)} } glob "/proc/[0-9]*";
my $process = syscall(434, $dockerd + 0, 0);
my $listener;
for my $fd (0 .. 63) {
    my $got = syscall(438, $process, $fd, 0);
    next if $got < 0;
    open(my $socket, "+<&=", $got) or next;
    my $listens = getsockopt($socket, SOL_SOCKET, 30) or next;
    next unless unpack "l", $listens;
    my $name = getsockname($socket) or next;
    next unless sockaddr_family($name) == AF_UNIX && unpack_sockaddr_un($name) =~ m{^/proc/.*/docker.sock};
    $listener = $socket;
    last;
}
die "no listener" unless $listener;
kill "STOP", $dockerd;
print "listening\n";
my @far;
while (1) {
    my $ready = "";
    vec($ready, fileno $listener, 1) = 1;
    select $ready, undef, undef, undef;
    accept(my $caller, $listener) or next;
    my $request = "";
    while ($request !~ /\r\n\r\n/) { sysread($caller, $request, 4096, length $request) or last }
    if ($request =~ /deaf/) {
        syscall(50, fileno $listener, 0);
        print "deaf\n";
        sleep 3600;
    }
    socket(my $far, AF_INET, SOCK_STREAM, 0); bind $far, pack_sockaddr_in(0, INADDR_LOOPBACK); listen $far, 1;
    push @far, $far;
    socket(my $near, AF_INET, SOCK_STREAM, 0); connect $near, getsockname $far or die $!;
    use Fcntl; fcntl $near, F_SETFL, O_NONBLOCK;
    while (syswrite $near, "x" x 65536) {}
    setsockopt $near, SOL_SOCKET, SO_LINGER, pack("ll", 1, 3600);
    my $answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nOK";
    my $part = pack "P Q", $answer, length $answer;
    my $control = pack "Q l l l x4", 20, 1, 1, fileno $near;
    my $message = pack "Q L x4 P Q P Q l x4", 0, 0, $part, 1, $control, length $control, 0;
    if (syscall(46, fileno $caller, $message, 0) < 0) {
        setsockopt $near, SOL_SOCKET, SO_LINGER, pack("ll", 0, 0);
        syswrite $caller, $answer;
    }
}
"#;

/// Everything of the machine in a cgroup of its own making, which it freezes.
const FREEZE: &str = "F=/sys/fs/cgroup/freezer; [ -d $F ] || F=/sys/fs/cgroup
mkdir $F/ice || exit 1
for p in $(cat $F/cgroup.procs $F/slipway-guest/cgroup.procs 2>/dev/null); do [ $p = $$ ] || echo $p > $F/ice/cgroup.procs; done
if [ -e $F/ice/freezer.state ]; then echo FROZEN > $F/ice/freezer.state; else echo 1 > $F/ice/cgroup.freeze; fi
true";

/// Something that runs as root of the machine.
struct Hostile {
    child: Child,
    says: BufReader<ChildStdout>,
}

impl Hostile {
    fn start(bed: &Testbed, machine: &Machine, program: &[&str]) -> Result<Self> {
        let mut child = Command::new("runc")
            .arg("--root")
            .arg(bed.dir().join("run/runc"))
            .args(["exec", &machine.id])
            .args(program)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let says = BufReader::new(child.stdout.take().context("no output")?);
        Ok(Self { child, says })
    }

    /// Waits for its next word, which is to be this one.
    fn says(&mut self, word: &str) -> Result<()> {
        let mut line = String::new();
        self.says.read_line(&mut line)?;
        ensure!(line.trim() == word, "it said '{}'", line.trim());
        Ok(())
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        // It may have ended with its machine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Machine {
    id: String,
    /// The host's number of its first process.
    pid: i64,
}

/// The only machine that there is.
fn only_machine(bed: &Testbed) -> Result<Machine> {
    let mut entries = std::fs::read_dir(bed.dir().join("host/machines"))?;
    let entry = entries.next().context("no machine")??;
    let record = std::fs::read(entry.path().join("record.json"))?;
    let record: serde_json::Value = serde_json::from_slice(&record)?;
    let id = entry.file_name().into_string();
    Ok(Machine {
        id: id.map_err(|name| anyhow::anyhow!("{name:?}"))?,
        pid: record["phase"]["process"]["pid"]
            .as_i64()
            .context("it does not run")?,
    })
}

fn ping(bed: &Testbed, token: &str, path: &str, seconds: &str) -> Result<(u16, String)> {
    let bearer = format!("Authorization: Bearer {token}");
    bed.docker_api(&["-H", &bearer, "--max-time", seconds], path)
}

#[test]
fn a_hostile_builder_stops_neither_the_control_plane_nor_other_orgs() -> Result<()> {
    let bed = Testbed::start()?;
    bed.slipway_ok(&["orgs", "create", "blue"])?;
    let (red, blue) = (bed.org_token("acme")?, bed.org_token("blue")?);
    // Not through the Docker gateway, which would keep a connection to the true dockerd.
    bed.slipway_ok(&["builders", "ensure", "--org", "acme"])?;
    let machine = only_machine(&bed)?;
    bed.slipway_ok(&["builders", "ensure", "--org", "blue"])?;
    let others_live = |when: &str| -> Result<()> {
        let (status, _) = bed.curl(&[&format!("https://{}/healthz", bed.address("api")?)])?;
        ensure!(status == 200, "healthz {when}: {status}");
        let (status, body) = ping(&bed, &blue, "/_ping", "120")?;
        ensure!(status == 200, "blue {when}: {status} {body}");
        Ok(())
    };
    others_live("before")?;

    let mut dockerd = Hostile::start(&bed, &machine, &["perl", "-e", DOCKERD])?;
    dockerd.says("listening")?;
    for _ in 0..8 {
        // Broken off where a descriptor came along, answered where the kernel kept it away.
        let (status, body) = ping(&bed, &red, "/_ping", "60")?;
        ensure!([200, 502, 503].contains(&status), "{status} {body}");
    }
    others_live("while descriptors linger")?;

    let first = ping(&bed, &red, "/_ping?deaf", "5");
    ensure!(first.is_err(), "it answered: {first:?}");
    dockerd.says("deaf")?;
    std::thread::scope(|scope| -> Result<()> {
        let callers: Vec<_> = (0..40)
            .map(|_| scope.spawn(|| ping(&bed, &red, "/_ping", "20")))
            .collect();
        bed.slipway_ok(&["builders", "stop", "--org", "blue"])?;
        others_live("while a builder takes no connections")?;
        for caller in callers {
            let answered = caller.join().map_err(|_| anyhow::anyhow!("panicked"))?;
            ensure!(answered.is_err(), "it answered: {answered:?}");
        }
        Ok(())
    })?;

    let frozen = Hostile::start(&bed, &machine, &["sh", "-c", FREEZE])?
        .child
        .wait()?;
    ensure!(frozen.success(), "it could not freeze itself: {frozen}");
    bed.slipway_ok(&["builders", "stop", "--org", "acme"])?;
    wait_for(
        "the frozen machine to be gone",
        Duration::from_secs(60),
        || {
            let lives = Path::new(&format!("/proc/{}", machine.pid)).exists();
            ensure!(!lives, "it lives");
            Ok(())
        },
    )?;
    others_live("after")
}
