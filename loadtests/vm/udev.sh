#!/bin/bash
# In the test's virtual machine, with udev running: no program of the host looks into volumes once the rules of scripts/install
# are there. Each disk is tried under a name that is no volume's as well, so that this test sees what it forbids.
set -euo pipefail
rules=/etc/udev/rules.d/12-slipway.rules
[[ ${1:?rules file} == "$rules" ]] || install -D -m 0644 "$1" $rules
udevadm control --reload
work=$(mktemp -d)
mkdir "$work/volumes"
modprobe -a loop dm_mod dm_thin_pool
truncate -s 64M "$work/fs" "$work/pv"

# What a tenant may write: a file system with a label, and a volume group of LVM's.
mkfs.ext4 -q -L tenant "$work/fs"
loop=$(losetup --find --show "$work/pv")
vgcreate -q tenantvg "$loop"
lvcreate -q -y -an -Zn -L 16M -n root tenantvg
losetup --detach "$loop"

settle() { udevadm settle --timeout=120; }
label=/dev/disk/by-label/tenant
attach() { # image, name: as a loop device
	cp "$work/$1" "$work/$2"
	loop=$(losetup --find --show "$work/$2")
	# As when whoever had it open for writing closes it.
	udevadm trigger --action=change --settle "$loop"
	exec {held}<>"$loop"
	exec {held}>&-
	settle
}
absent() { [[ ! -e $1 ]] || { echo "$1 is there"; ls -l "$1"; udevadm info "$1"; exit 1; }; }
unread() { # device: nobody has looked what is on it
	! udevadm info --query=property --name="$1" | grep '^ID_FS_' || { echo "$1 was read"; exit 1; }
}
present() {
	local until=$((SECONDS + 120))
	until [[ -e $1 ]]; do
		((SECONDS < until)) || { echo "$1 is not there: this test sees nothing"; exit 1; }
		sleep 0.2
	done
}

attach fs other.img
present $label
losetup --detach "$loop"
settle
absent $label
attach fs volumes/vol_one.img
unread "$loop"
absent $label
losetup --detach "$loop"

# LVM, mdadm and btrfs are started for what udev has read on a disk.
attach pv other.img
udevadm info --query=property --name="$loop" | grep -q '^ID_FS_TYPE=LVM2_member$' || { echo "no volume group: this test sees nothing"; exit 1; }
losetup --detach "$loop"
settle
vgchange -q -an tenantvg 2>/dev/null || true
attach pv volumes/vol_two.img
unread "$loop"
absent /dev/tenantvg/root
losetup --detach "$loop"

# Thin volumes, and what is decrypted of one. Their own names are there, by which they are found.
named() { # device, own name
	local links
	links=$(udevadm info --query=symlink --name="$1")
	present "$2"
	case $2 in
	*slipway*)
		unread "$1"
		[[ $links != *by-* ]] || { echo "$1 is also $links"; exit 1; }
		;;
	*) [[ $links == *by-label/tenant* ]] || { echo "$1 has no label: this test sees nothing: $links"; exit 1; } ;;
	esac
}
truncate -s 512M "$work/disk"
loop=$(losetup --find --show "$work/disk")
vgcreate -q fast "$loop"
for name in other slipway_vol_one; do
	lvcreate -q -y -L 64M -n $name fast
	dd if="$work/fs" of=/dev/fast/$name bs=1M status=none
	device=$(readlink -f /dev/fast/$name)
	udevadm trigger --action=change --settle "$device"
	settle
	named "$device" /dev/fast/$name
done
size=$(blockdev --getsz /dev/fast/other)
for name in clear slipway-vol_one; do
	dmsetup create $name --table "0 $size linear /dev/fast/other 0"
	settle
	named "$(readlink -f /dev/mapper/$name)" /dev/mapper/$name
	dmsetup remove $name
	settle
done
vgchange -q -an fast
losetup --detach "$loop"
echo "no program of the host looks into volumes"
