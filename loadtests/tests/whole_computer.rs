//! A builder is a whole computer to Docker's clients: what they ask of one works, within the machine's bounds, and what cannot
//! be is refused by its name.
//!
//! One farm for all of it; each part is a function that says what it keeps.

use anyhow::{Context, Result, ensure};
use slipway_loadtests::testbed::{DockerClient, Testbed, checkout_dir, show, wait_for};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Memory of the builder: less than any computer that runs this has.
const MEMORY: u64 = 1 << 30;
const WAIT: Duration = Duration::from_secs(120);

#[test]
fn a_builder_is_a_whole_computer_to_docker() -> Result<()> {
    let mut bed = Testbed::start()?;
    bed.registry.seed(&["debian", "busybox"])?;
    bed.slipway_ok(&["orgs", "update", "acme", "--memory", "1GiB"])?;
    let docker = DockerClient::of_farm(&bed)?;
    capabilities_are_given_or_refused_by_name(&docker)?;
    limits_are_raised_as_far_as_the_host_allows(&mut bed, &docker)?;
    mounts_are_shared_in_the_machine_and_nowhere_else(&docker)?;
    containers_and_steps_see_the_machines_memory(&docker)?;
    memory_that_runs_out_is_told_whatever_the_step_ends_with(&bed)?;
    networks_of_users_have_the_mtu_of_the_way_out(&docker)?;
    what_containers_are_often_given_works(&docker)?;
    programs_run_and_their_locked_memory_counts(&docker)?;
    docker_runs_in_docker(&docker)?;
    set_user_id_is_kept_by_chmod_and_archives(&docker)?;
    steps_may_be_privileged(&docker)
}

/// Runs a container to its end; what it prints.
fn run(docker: &DockerClient, arguments: &[&str]) -> Result<String> {
    docker.docker_ok(&[&["run", "--rm"], arguments].concat())
}

fn capabilities_are_given_or_refused_by_name(docker: &DockerClient) -> Result<()> {
    for (name, bit) in [
        ("NET_ADMIN", 12),
        ("IPC_LOCK", 14),
        ("SYS_NICE", 23),
        ("SYS_RESOURCE", 24),
    ] {
        let said = run(
            docker,
            &[
                "--cap-add",
                name,
                "busybox",
                "grep",
                "CapEff",
                "/proc/self/status",
            ],
        )?;
        let set = said.split_whitespace().last().context("no set")?;
        let set = u64::from_str_radix(set, 16)?;
        ensure!(set >> bit & 1 == 1, "{name}: {said}");
    }
    for name in ["SYS_MODULE", "SYS_TIME", "SYS_RAWIO", "SYS_BOOT", "BPF"] {
        let refused = docker
            .command(
                "docker",
                &["run", "--rm", "--cap-add", name, "busybox", "true"],
            )
            .output()?;
        let words = show(&refused);
        ensure!(
            !refused.status.success() && words.contains(&format!("CAP_{name}")),
            "{name}: {words}"
        );
    }
    Ok(())
}

/// The hard limit of a process, as /proc/PID/limits has it.
fn hard_limit(pid: u32, name: &str) -> Result<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let hard = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(hard
        .with_context(|| format!("no {name}: {text}"))?
        .to_owned())
}

/// A container that asks for more than the host lets its machines have is not refused: it gets that.
fn limits_are_raised_as_far_as_the_host_allows(
    bed: &mut Testbed,
    docker: &DockerClient,
) -> Result<()> {
    let host = bed.host().context("the host daemon runs")?.pid();
    let said = run(
        docker,
        &[
            "--ulimit",
            "memlock=-1:-1",
            "--ulimit",
            "nofile=1048576:1048576",
            "--oom-score-adj",
            "-500",
            "debian:trixie",
            "cat",
            "/proc/self/limits",
        ],
    )?;
    for (name, most) in [
        ("Max open files", Some(1_048_576)),
        ("Max locked memory", None),
    ] {
        let of_host = hard_limit(host, name)?;
        let wanted = match (of_host.parse::<u64>(), most) {
            (Ok(limit), Some(most)) => limit.min(most).to_string(),
            _ => of_host,
        };
        let line = said.lines().find_map(|line| line.strip_prefix(name));
        let got: Vec<_> = line
            .context("no line")?
            .split_whitespace()
            .take(2)
            .collect();
        ensure!(
            got == [&wanted, &wanted],
            "{name} should be {wanted}: {said}"
        );
    }
    Ok(())
}

fn mounts_are_shared_in_the_machine_and_nowhere_else(docker: &DockerClient) -> Result<()> {
    let shared = [
        "--privileged",
        "-v",
        "/mnt:/y:rshared",
        "busybox",
        "sh",
        "-c",
    ];
    let made = "mkdir -p /y/in && mount -t tmpfs seen-in-the-machine /y/in";
    run(docker, &[shared.as_slice(), &[made]].concat())?;
    let seen = run(docker, &["-v", "/mnt:/y", "busybox", "cat", "/proc/mounts"])?;
    ensure!(seen.contains("seen-in-the-machine /y/in"), "{seen}");
    run(docker, &["-v", "/mnt:/y:rslave", "busybox", "true"])?;
    let of_host = std::fs::read_to_string("/proc/self/mounts")?;
    ensure!(!of_host.contains("seen-in-the-machine"), "{of_host}");
    run(docker, &[shared.as_slice(), &["umount /y/in"]].concat())?;
    Ok(())
}

/// A limit in bytes, of either version of cgroups.
const SEES: &str = "grep MemTotal /proc/meminfo
cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null
cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null
true";

fn sees_the_machine(said: &str) -> Result<()> {
    let kib = (MEMORY >> 10).to_string();
    let bytes = MEMORY.to_string();
    let has = |word: &str| said.split_whitespace().any(|found| found == word);
    ensure!(has(&kib) && has(&bytes), "memory: {said}");
    // The default size has two processors.
    ensure!(has("200000"), "processors: {said}");
    Ok(())
}

/// So that what sizes itself by them (JVM, node, `make -j`, databases) does not take itself for the host's only program.
fn containers_and_steps_see_the_machines_memory(docker: &DockerClient) -> Result<()> {
    sees_the_machine(&run(docker, &["busybox", "sh", "-c", SEES])?)?;
    let less = run(
        docker,
        &["-m", "100m", "--cpus", "0.5", "busybox", "sh", "-c", SEES],
    )?;
    ensure!(
        less.contains("104857600\n") && less.contains("50000"),
        "{less}"
    );
    let total = docker.docker_ok(&["info", "--format", "{{.MemTotal}}"])?;
    ensure!(total.trim() == MEMORY.to_string(), "docker info: {total}");
    run(docker, &["-d", "--name", "some", "busybox", "sleep", "600"])?;
    let stats = docker.docker_ok(&[
        "stats",
        "--no-stream",
        "--format",
        "{{.Name}} {{.MemUsage}}",
    ])?;
    ensure!(
        stats.contains("some ") && stats.contains("/ 1GiB"),
        "{stats}"
    );
    docker.docker_ok(&["rm", "-f", "some"])?;

    let step = SEES.replace('\n', "; ");
    let said = build(docker, "sizes", &format!("FROM busybox\nRUN {step}\n"), &[])?;
    sees_the_machine(&said)
}

/// What is ended for it is a child here, as with `make`.
fn memory_that_runs_out_is_told_whatever_the_step_ends_with(bed: &Testbed) -> Result<()> {
    let step = "FROM debian:trixie\nRUN tail /dev/zero; exit 2\n";
    let dir = bed.project("hungry", &[("Dockerfile", step)])?;
    let says = ["exit code: 2", "(1024 MiB)", "orgs update --memory"];
    let said = bed.refused(&mut bed.deploy(&dir, "hungry"), 1, &says)?;
    std::fs::write(dir.join("Dockerfile"), "FROM debian:trixie\nRUN exit 2\n")?;
    let other = bed.deploy(&dir, "hungry").output()?;
    let other_said = show(&other);
    ensure!(
        other.status.code() == Some(1) && !other_said.contains("orgs update --memory"),
        "{other_said}\nbefore: {said}"
    );
    Ok(())
}

/// `docker build` in a directory of its own; what it printed.
fn build(docker: &DockerClient, name: &str, dockerfile: &str, options: &[&str]) -> Result<String> {
    let dir = format!("/{name}");
    let on_host = docker.root().join(name);
    std::fs::create_dir_all(&on_host)?;
    std::fs::write(on_host.join("Dockerfile"), dockerfile)?;
    let fixed = ["buildx", "build", "--progress", "plain", "-t", name];
    let output = docker
        .command("docker", &[&fixed, options, &[&dir]].concat())
        .output()?;
    ensure!(output.status.success(), "{name}: {}", show(&output));
    Ok(show(&output))
}

fn networks_of_users_have_the_mtu_of_the_way_out(docker: &DockerClient) -> Result<()> {
    let mtu = |network: &str| {
        let path = "/sys/class/net/eth0/mtu";
        run(docker, &["--network", network, "busybox", "cat", path])
    };
    docker.docker_ok(&["network", "create", "of-a-user"])?;
    let (own, default) = (mtu("of-a-user")?, mtu("bridge")?);
    ensure!(own == default, "{own} beside {default}");
    let options = docker.docker_ok(&["network", "inspect", "of-a-user"])?;
    ensure!(
        options.contains("com.docker.network.driver.mtu"),
        "{options}"
    );
    Ok(())
}

fn what_containers_are_often_given_works(docker: &DockerClient) -> Result<()> {
    for options in [
        &["--network=host", "--pid=host", "--ipc=host"] as &[_],
        &["--uts=host", "--cgroupns=host", "--userns=host"],
        &["--security-opt=seccomp=unconfined", "--shm-size=1g"],
        &["--security-opt=no-new-privileges", "--pids-limit=100"],
        &["--init", "--sysctl=net.core.somaxconn=1024"],
        &["--read-only", "--tmpfs=/run", "--device=/dev/null"],
        &["--memory-reservation=10m", "--memory-swap=-1", "-m=20m"],
        &["--cpu-shares=2", "--cpuset-cpus=0", "--cpu-period=50000"],
    ] {
        run(docker, &[options, &["busybox", "true"]].concat())?;
    }
    Ok(())
}

/// Compiles a program of the tests into the directory of a build.
fn compile(source: &Path, options: &[&str], program: &Path) -> Result<()> {
    let compiled = Command::new("cc")
        .args(["-O1", "-static", "-o"])
        .arg(program)
        .arg(source)
        .args(options)
        .output()?;
    ensure!(compiled.status.success(), "{}", show(&compiled));
    Ok(())
}

fn programs_run_and_their_locked_memory_counts(docker: &DockerClient) -> Result<()> {
    let context = docker.root().join("programs");
    std::fs::create_dir_all(&context)?;
    let sources = checkout_dir();
    let lock = sources.join("loadtests/tests/programs/lock.c");
    compile(&lock, &[], &context.join("lock"))?;
    let mut dockerfile = "FROM busybox\nCOPY lock /\n".to_owned();
    if cfg!(target_arch = "x86_64") {
        let calls = sources.join("builder/host/tests/sandbox/programs/calls.c");
        let options = [
            "-m32",
            "-nostdlib",
            "-ffreestanding",
            "-fno-pie",
            "-no-pie",
            "-fno-stack-protector",
        ];
        compile(&calls, &options, &context.join("calls"))?;
        dockerfile += "COPY calls /\nRUN /calls | grep -x uname=0\n";
    }
    build(
        docker,
        "programs",
        &dockerfile,
        &[
            "--ulimit",
            "nofile=1048576:1048576",
            "--ulimit",
            "memlock=-1",
        ],
    )?;
    if cfg!(target_arch = "x86_64") {
        let said = run(docker, &["programs", "/calls"])?;
        ensure!(said.lines().any(|line| line == "uname=0"), "{said}");
    }
    locked_memory_counts_as_the_machines(docker)
}

fn locked_memory_counts_as_the_machines(docker: &DockerClient) -> Result<()> {
    let options = ["--cap-add=IPC_LOCK", "--ulimit=memlock=-1"];
    // As much as a process may lock where the host gives its daemon no more than is usual.
    let mib = "7";
    let mut locking = docker
        .command(
            "docker",
            &[
                &["run", "--rm", "-i", "--name", "locking"],
                options.as_slice(),
                &["programs", "/lock", mib],
            ]
            .concat(),
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    wait_for("locked memory in the container's figures", WAIT, || {
        let usage = "cat /sys/fs/cgroup/memory.current /sys/fs/cgroup/memory/memory.usage_in_bytes 2>/dev/null; true";
        let said = docker.docker_ok(&["exec", "locking", "sh", "-c", usage])?;
        let used: u64 = said.trim().parse().with_context(|| said.clone())?;
        ensure!(used >= 7 << 20, "{used} bytes");
        Ok(())
    })?;
    drop(locking.stdin.take());
    ensure!(locking.wait()?.success());
    let mib = ((2 * MEMORY) >> 20).to_string();
    let too_much = docker
        .command(
            "docker",
            &[
                &["run", "--rm"],
                options.as_slice(),
                &["programs", "/lock", &mib],
            ]
            .concat(),
        )
        .output()?;
    ensure!(!too_much.status.success(), "{}", show(&too_much));
    run(docker, &["busybox", "true"])?;
    Ok(())
}

/// A dockerd in a privileged container, with the programs that the builder itself has.
const INNER: &str = r#"
export DOCKER_HOST=unix:///run/docker.sock
dockerd >/tmp/log 2>&1 &
until docker version >/dev/null 2>&1; do
  kill -0 $! 2>/dev/null || { tail -20 /tmp/log; exit 1; }
  sleep 0.1
done
set -e
docker info --format 'driver={{.Driver}}'
tar -C /usr/bin -c busybox | docker import - inner >/dev/null
docker run --rm inner /busybox echo nested
docker run --rm --privileged inner /busybox echo nested and privileged
mkdir /c
printf 'FROM inner\nRUN ["/busybox","echo","a nested step"]\n' >/c/Dockerfile
docker build --progress plain /c 2>&1
"#;

fn docker_runs_in_docker(docker: &DockerClient) -> Result<()> {
    let said = run(
        docker,
        &[
            "--privileged",
            "-v=/usr:/usr:ro",
            "-v=/etc/alternatives:/etc/alternatives:ro",
            "-v=inner:/var/lib/docker",
            "debian:trixie",
            "bash",
            "-c",
            INNER,
        ],
    )?;
    for words in [
        "driver=overlay2",
        "nested\n",
        "nested and privileged\n",
        "a nested step",
    ] {
        ensure!(said.contains(words), "{words}: {said}");
    }
    docker.docker_ok(&["volume", "rm", "inner"])?;
    Ok(())
}

/// `COPY` of a file that has the bit loses it, which docs/SECURITY.md says; all other ways keep it.
fn set_user_id_is_kept_by_chmod_and_archives(docker: &DockerClient) -> Result<()> {
    let context = docker.root().join("bits");
    std::fs::create_dir_all(&context)?;
    let file = context.join("file");
    std::fs::write(&file, "x")?;
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o4755))?;
    let packed = Command::new("tar")
        .arg("-C")
        .arg(&context)
        .args(["-cf", "packed.tar", "file"])
        .current_dir(&context)
        .output()?;
    ensure!(packed.status.success(), "{}", show(&packed));
    let dockerfile = "FROM busybox AS first\nCOPY --chmod=4755 file /chmod\nADD packed.tar /archive\n\
        COPY file /later\nRUN chmod 4755 /later\n\
        FROM busybox\nCOPY --from=first /chmod /archive/file /later /kept/\nCOPY file /lost\n\
        RUN stat -c 'mode-%a' /kept/* /lost\n";
    let said = build(docker, "bits", dockerfile, &[])?;
    let count = |mode: &str| {
        let lines = said.lines().filter(|line| line.ends_with(mode));
        lines.count()
    };
    ensure!(
        count(" mode-4755") == 3 && count(" mode-755") == 1,
        "{said}"
    );
    Ok(())
}

/// BuildKit refuses the whole build where its daemon does not allow what the client grants.
fn steps_may_be_privileged(docker: &DockerClient) -> Result<()> {
    let allowed = ["--allow", "security.insecure"];
    build(docker, "granted", "FROM busybox\nRUN true\n", &allowed)?;
    // The frontend of this engine has no such flag, and a newer one cannot be fetched here.
    let dockerfile = "FROM busybox\nRUN --security=insecure true\n";
    std::fs::write(docker.root().join("granted/Dockerfile"), dockerfile)?;
    let again = [&["buildx", "build"], allowed.as_slice(), &["/granted"]].concat();
    let refused = docker.command("docker", &again).output()?;
    let words = show(&refused);
    ensure!(
        !refused.status.success() && words.contains("unknown flag: security"),
        "{words}"
    );
    Ok(())
}
