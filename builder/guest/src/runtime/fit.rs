//! Fits a container to its machine: what it is to see of the machine's limits, and what it may not have. Pure; the document is
//! `config.json` of the OCI runtime specification.
//!
//! Whatever is not as that specification says stays as it is: the runtime has words for it.

use crate::share::{Cpu, Share, meminfo};
use serde_json::{Map, Value, json};

/// What a container is fitted to.
#[derive(Debug, Clone, Default)]
pub(super) struct Machine {
    /// Limits of the machine.
    pub(super) share: Share,
    /// Hard limits of this process by their names there. Empty where root may raise them: not in a user namespace.
    pub(super) rlimits: Vec<(&'static str, u64)>,
    /// Whether containers are to have the machine's own `/proc/meminfo`.
    pub(super) meminfo: bool,
    /// Whether a process may be made less likely to be ended than its machine's others: not in a user namespace.
    pub(super) may_be_spared: bool,
}

/// Fits the configuration of a container. `flags_of` gives, of `nodev`, `nosuid` and `noexec`, those of the mount that a path is on.
pub(super) fn container(
    config: &mut Value,
    machine: &Machine,
    flags_of: impl Fn(&str) -> Vec<&'static str>,
) {
    if let Some(started) = config.get_mut("process") {
        process(started, machine);
    }
    // A container that hides nothing of /proc is a privileged one, which may make user namespaces with a /proc of their own.
    let hides = |list: &Value| list.as_array().is_some_and(|list| !list.is_empty());
    let hides = config.pointer("/linux/maskedPaths").is_some_and(hides);
    if machine.meminfo && hides {
        add_meminfo(config);
    }
    if let Some(Value::Array(mounts)) = config.get_mut("mounts") {
        mounts
            .iter_mut()
            .for_each(|mount| keep_flags(mount, &flags_of));
    }
    if let Some(Value::Object(linux)) = config.get_mut("linux") {
        let resources = linux.entry("resources").or_insert_with(|| json!({}));
        if let Value::Object(resources) = resources {
            limit_memory(resources, machine.share);
            limit_cpu(resources, machine.share);
        }
    }
}

/// Fits a process: of a container, or one that is started in it later.
pub(super) fn process(process: &mut Value, machine: &Machine) {
    if let Some(Value::Array(limits)) = process.get_mut("rlimits") {
        for limit in limits {
            let named = |(name, _): &&(&str, u64)| limit["type"] == *name;
            let Some((_, most)) = machine.rlimits.iter().find(named) else {
                continue;
            };
            for which in ["hard", "soft"] {
                if limit[which].as_u64().is_some_and(|value| value > *most) {
                    limit[which] = json!(most);
                }
            }
        }
    }
    let score = process.get_mut("oomScoreAdj");
    if let Some(score) = score.filter(|_| !machine.may_be_spared)
        && score.as_i64().is_some_and(|score| score < 0)
    {
        *score = json!(0);
    }
}

/// A read-only bind mount is one that is mounted anew, and root of a user namespace may not take flags away that the host has set.
/// dockerd sees to that for what its users mount, but not for its own, as that of `--init`.
fn keep_flags(mount: &mut Value, flags_of: impl Fn(&str) -> Vec<&'static str>) {
    let Some(source) = mount["source"].as_str().map(str::to_owned) else {
        return;
    };
    let Some(Value::Array(options)) = mount.get_mut("options") else {
        return;
    };
    let has = |options: &[Value], name: &str| options.iter().any(|option| option == name);
    let binds = has(options, "bind") || has(options, "rbind");
    if !binds || !has(options, "ro") {
        return;
    }
    for flag in flags_of(&source) {
        let asked_away = flag
            .strip_prefix("no")
            .is_some_and(|name| has(options, name));
        if !asked_away && !has(options, flag) {
            options.push(json!(flag));
        }
    }
}

fn add_meminfo(config: &mut Value) {
    if let Some(Value::Array(mounts)) = config.get_mut("mounts")
        && !mounts.iter().any(|m| m["destination"] == meminfo::PLACE)
    {
        mounts.push(json!({
            "destination": meminfo::PLACE, "type": "bind", "source": meminfo::FILE,
            "options": ["bind", "ro", "nosuid", "nodev", "noexec"],
        }));
    }
}

/// A container's own cgroup is all that it sees, and the machine's limit lies above that.
fn limit_memory(resources: &mut Map<String, Value>, share: Share) {
    let Some(most) = share.memory_bytes.and_then(|most| i64::try_from(most).ok()) else {
        return;
    };
    let memory = resources.entry("memory").or_insert_with(|| json!({}));
    let asked = memory.get("limit").and_then(Value::as_i64).unwrap_or(0);
    if let Value::Object(memory) = memory
        && (asked <= 0 || asked > most)
    {
        memory.insert("limit".to_owned(), json!(most));
    }
}

fn limit_cpu(resources: &mut Map<String, Value>, share: Share) {
    let Some(Cpu {
        quota_us,
        period_us,
    }) = share.cpu
    else {
        return;
    };
    let cpu = resources.entry("cpu").or_insert_with(|| json!({}));
    let asked = cpu.get("quota").and_then(Value::as_i64).unwrap_or(0);
    let period = cpu.get("period").and_then(Value::as_u64).unwrap_or(0);
    let period = if period == 0 { period_us } else { period };
    let most = i128::from(quota_us) * i128::from(period) / i128::from(period_us.max(1));
    if let Value::Object(cpu) = cpu
        && (asked <= 0 || i128::from(asked) > most)
    {
        cpu.insert("quota".to_owned(), json!(i64::try_from(most).unwrap_or(-1)));
        cpu.insert("period".to_owned(), json!(period));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox() -> Machine {
        Machine {
            share: Share {
                memory_bytes: Some(1 << 30),
                cpu: Some(Cpu {
                    quota_us: 200_000,
                    period_us: 100_000,
                }),
            },
            rlimits: vec![("RLIMIT_NOFILE", 20_000), ("RLIMIT_MEMLOCK", 8 << 20)],
            meminfo: true,
            may_be_spared: false,
        }
    }

    fn none(_path: &str) -> Vec<&'static str> {
        Vec::new()
    }

    fn resources(asked: Value) -> Value {
        let mut config = json!({ "linux": { "resources": asked } });
        container(&mut config, &sandbox(), none);
        config["linux"]["resources"].take()
    }

    #[test]
    fn a_container_sees_the_machines_limits_as_its_own_unless_it_has_less() {
        let machine = json!({ "limit": 1 << 30 });
        let cpu = json!({ "quota": 200_000, "period": 100_000 });
        let whole = json!({ "memory": machine, "cpu": cpu });
        for (asked, got) in [
            (json!({}), whole.clone()),
            (
                json!({ "memory": { "limit": -1 }, "cpu": { "quota": 0 } }),
                whole.clone(),
            ),
            (
                json!({ "memory": { "limit": 1_i64 << 40 }, "cpu": { "quota": 900_000, "period": 100_000 } }),
                whole,
            ),
            (
                json!({ "memory": { "limit": 4096, "swap": 8192 }, "cpu": { "quota": 1000, "period": 50_000 } }),
                json!({ "memory": { "limit": 4096, "swap": 8192 }, "cpu": { "quota": 1000, "period": 50_000 } }),
            ),
            (
                json!({ "cpu": { "shares": 2, "period": 50_000 } }),
                json!({ "memory": machine, "cpu": { "shares": 2, "quota": 100_000, "period": 50_000 } }),
            ),
        ] {
            assert_eq!(resources(asked.clone()), got, "{asked}");
        }
    }

    #[test]
    fn limits_of_a_process_that_root_here_cannot_raise_are_cut_to_what_there_is() {
        let asked = json!({ "oomScoreAdj": -500, "rlimits": [
            { "type": "RLIMIT_NOFILE", "hard": 1_048_576, "soft": 1024 },
            { "type": "RLIMIT_MEMLOCK", "hard": u64::MAX, "soft": u64::MAX },
            { "type": "RLIMIT_CORE", "hard": 5, "soft": 5 },
        ]});
        let mut got = asked.clone();
        process(&mut got, &sandbox());
        assert_eq!(
            got,
            json!({ "oomScoreAdj": 0, "rlimits": [
                { "type": "RLIMIT_NOFILE", "hard": 20_000, "soft": 1024 },
                { "type": "RLIMIT_MEMLOCK", "hard": 8 << 20, "soft": 8 << 20 },
                { "type": "RLIMIT_CORE", "hard": 5, "soft": 5 },
            ]})
        );
        let mut same = asked.clone();
        let virtual_machine = Machine {
            may_be_spared: true,
            ..Machine::default()
        };
        process(&mut same, &virtual_machine);
        assert_eq!(same, asked, "a virtual machine's root may raise them");
    }

    #[test]
    fn figures_of_memory_are_mounted_once_and_not_into_privileged_containers() {
        let mounts = |masked: Value, mounts: Value| {
            let mut config = json!({ "mounts": mounts, "linux": { "maskedPaths": masked } });
            for _ in 0..2 {
                container(&mut config, &sandbox(), none);
            }
            config["mounts"].as_array().map(Vec::len)
        };
        assert_eq!(mounts(json!(["/proc/kcore"]), json!([])), Some(1));
        assert_eq!(mounts(json!([]), json!([])), Some(0));
        assert_eq!(mounts(json!(null), json!([])), Some(0));
        let own = json!([{ "destination": "/proc/meminfo" }]);
        assert_eq!(mounts(json!(["/proc/kcore"]), own), Some(1));
    }

    #[test]
    fn a_read_only_bind_mount_keeps_the_flags_that_root_here_may_not_take_away() {
        let of_root = |path: &str| match path {
            "/usr/bin/docker-init" => vec!["nodev", "nosuid"],
            _ => Vec::new(),
        };
        let options = |source: &str, options: Value| {
            let mount = json!({ "source": source, "destination": "/x", "options": options });
            let mut config = json!({ "mounts": [mount] });
            container(&mut config, &Machine::default(), of_root);
            config["mounts"][0]["options"].take()
        };
        let init = "/usr/bin/docker-init";
        for (source, asked, got) in [
            (
                init,
                json!(["bind", "ro"]),
                json!(["bind", "ro", "nodev", "nosuid"]),
            ),
            (
                init,
                json!(["rbind", "ro", "nodev", "suid"]),
                json!(["rbind", "ro", "nodev", "suid"]),
            ),
            (init, json!(["bind"]), json!(["bind"])),
            ("/tmp", json!(["bind", "ro"]), json!(["bind", "ro"])),
            ("tmpfs", json!(["ro"]), json!(["ro"])),
        ] {
            assert_eq!(options(source, asked.clone()), got, "{source} {asked}");
        }
    }

    #[test]
    fn what_is_no_configuration_stays_as_it_is() {
        for odd in [
            json!(null),
            json!([]),
            json!({ "process": 1, "linux": [], "mounts": {} }),
            json!({ "mounts": [1, { "source": "/" }, { "source": "/", "options": "ro" }] }),
            json!({ "linux": { "resources": 3, "maskedPaths": "x" } }),
        ] {
            let mut got = odd.clone();
            container(&mut got, &sandbox(), none);
            assert_eq!(got, odd);
        }
    }
}
