#!/bin/busybox sh
# PID 1 of a virtual machine until its root file system is there; then slipway-guest is. Puts the same root together that the
# sandbox driver makes on the host: a tmpfs above the guest's layer above the builder image. Disks are known by serial.
#
# Kernel parameters: slipway.scratch=BYTES, what may be written outside the volume; slipway.probe: only say that it boots.

/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs devtmpfs /dev
mount -t proc -o nosuid,noexec,nodev proc /proc
mount -t sysfs -o nosuid,noexec,nodev sysfs /sys

scratch=1g
for word in $(cat /proc/cmdline); do
	case $word in
	slipway.probe)
		# The host waits for this line.
		echo 'slipway: it boots'
		poweroff -f
		;;
	slipway.scratch=*) scratch=${word#*=} ;;
	esac
done

# A machine that cannot go on ends; the kernel's own panic says so on the console.
die() {
	echo "slipway: $*"
	exit 1
}

for module in /modules/*.ko; do insmod "$module" || die "cannot load $module"; done

# The disk with the serial $1; they may take a moment to appear.
disk() {
	local tries=0 dir
	while [ $tries -lt 100 ]; do
		for dir in /sys/block/vd*; do
			[ "$(cat "$dir/serial" 2>/dev/null)" = "$1" ] && echo "/dev/${dir##*/}" && return
		done
		usleep 20000
		tries=$((tries + 1))
	done
	return 1
}

for part in base layer; do
	mount -t squashfs -o ro,nodev "$(disk $part)" /$part || die "no disk '$part'"
done
mount -t tmpfs -o "size=$scratch,nr_inodes=262144,mode=0755" tmpfs /scratch
mkdir /scratch/upper /scratch/work
mount -t overlay -o lowerdir=/layer:/base,upperdir=/scratch/upper,workdir=/scratch/work overlay /root || die "no root"
mkdir -p /root/usr/lib/modules
mount -t squashfs -o ro,nodev,nosuid "$(disk modules)" /root/usr/lib/modules || die "no disk 'modules'"
for dir in dev proc sys; do mount --move /$dir /root/$dir; done

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root container=slipway
exec /bin/switch_root /root /sbin/slipway-guest --virtual-machine
