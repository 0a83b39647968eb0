use super::*;

#[test]
fn runs_a_command_on_a_kernel_of_its_own() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("a file's name");
    std::fs::write(&file, "#!/bin/sh\necho handed in\n")?;
    let end = Vm::new()?
        .file("hello", &file)
        .disk("pool", 256 << 20)
        .run(
            "set -e\n/run/test/hello\nstat -fc %T /sys/fs/cgroup\nmodprobe dm_thin_pool\nmodprobe dm_crypt\n\
             mkfs.ext4 -q /dev/disk/by-test/pool\nmount /dev/disk/by-test/pool /mnt\necho kept > /mnt/file\n\
             umount /mnt\nexit 7\n",
            Duration::from_secs(100),
        )?;
    assert_eq!(end.output, "handed in\ncgroup2fs\n", "{}", end.console);
    assert_eq!(end.exit_code, 7);
    Ok(())
}

#[test]
fn a_disk_that_is_kept_has_what_was_synced_before_the_power_was_cut() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("disk");
    std::fs::File::create(&path)?.set_len(64 << 20)?;
    let end = Vm::new()?
        .kept_disk("kept", &path)
        .cut_power_at("now")
        .run(
            "echo synced | dd of=/dev/disk/by-test/kept conv=fsync status=none; echo now; sleep 1000",
            Duration::from_secs(100),
        )?;
    assert_eq!(end.exit_code, 137, "{}", end.console);
    let end = Vm::new()?
        .kept_disk("kept", &path)
        .run("head -n 1 /dev/disk/by-test/kept", Duration::from_secs(100))?;
    assert_eq!(end.output, "synced\n", "{}", end.console);
    Ok(())
}

#[test]
fn a_command_that_hangs_is_ended() -> Result<()> {
    let end = Vm::new()?.run("echo begun; sleep 1000", Duration::from_secs(2))?;
    assert_eq!((end.exit_code, end.output.as_str()), (124, "begun\n"));
    Ok(())
}
