# What build.sh and kernel.sh share: the operator's choices, and the names of what they make. Sourced by both.
#
# /etc/slipway/image.conf (or the file that SLIPWAY_IMAGE_CONF names) has the choices, one NAME=VALUE a line; docs/operations.md
# explains them. What is chosen is part of the recipe: another choice makes another image.

# Expects `arch`, `say` and `die`.
SUITE=trixie ENGINE=debian CHECK_VALID_UNTIL=yes
APT_URI='' APT_SUITE='' APT_COMPONENTS='' APT_KEY='' ROOTFS=''
APT_PACKAGES='docker-ce docker-ce-cli containerd.io docker-buildx-plugin docker-compose-plugin'
choices=(SUITE ENGINE CHECK_VALID_UNTIL APT_URI APT_SUITE APT_COMPONENTS APT_KEY APT_PACKAGES ROOTFS)

read_choices() {
	local conf=${SLIPWAY_IMAGE_CONF:-/etc/slipway/image.conf} line name value
	if [[ ! -e $conf ]]; then
		[[ -z ${SLIPWAY_IMAGE_CONF:-} ]] || die "there is no $conf"
		return 0
	fi
	while IFS= read -r line || [[ -n $line ]]; do
		[[ $line =~ ^[[:space:]]*(#|$) ]] && continue
		[[ $line =~ ^([A-Z_]+)=(.*)$ ]] || die "$conf: '$line' is not NAME=VALUE"
		name=${BASH_REMATCH[1]} value=${BASH_REMATCH[2]}
		[[ " ${choices[*]} " == *" $name "* ]] || die "$conf: there is no setting $name (hint: one of ${choices[*]})"
		# As a shell would read it, for those who quote.
		[[ $value =~ ^\"(.*)\"$ || $value =~ ^\'(.*)\'$ ]] && value=${BASH_REMATCH[1]}
		printf -v "$name" %s "$value"
	done <"$conf"
	check_choices "$conf"
}

check_choices() {
	local conf=$1 name
	[[ $SUITE =~ ^[a-z0-9.-]+$ ]] || die "$conf: SUITE='$SUITE' is no name of a suite"
	[[ $CHECK_VALID_UNTIL == yes || $CHECK_VALID_UNTIL == no ]] || die "$conf: CHECK_VALID_UNTIL is yes or no"
	case $ENGINE in
	debian) ;;
	apt)
		for name in APT_URI APT_SUITE APT_COMPONENTS APT_KEY APT_PACKAGES; do
			[[ -n ${!name} ]] || die "$conf: ENGINE=apt needs $name"
			[[ ${!name} != *[\"\'\\\]\[]* ]] || die "$conf: $name has a character that it cannot have"
		done
		[[ $APT_KEY == /* && -r $APT_KEY ]] || die "$conf: APT_KEY must be the absolute path of a readable file: $APT_KEY"
		[[ $APT_KEY == *.asc || $APT_KEY == *.gpg ]] || die "$conf: APT_KEY must end with .asc (text) or .gpg (binary)"
		;;
	rootfs)
		[[ $ROOTFS == /* && -r $ROOTFS ]] || die "$conf: ENGINE=rootfs needs ROOTFS, the absolute path of a directory or tar: '$ROOTFS'"
		;;
	*) die "$conf: ENGINE=$ENGINE is unknown (hint: debian, apt or rootfs)" ;;
	esac
}

# The choices and what they name, for the hash of a recipe; those in $@ alone.
choices_text() {
	local name
	for name in "$@"; do printf '%s=%s\n' "$name" "${!name}"; done
	[[ " $* " != *" APT_KEY "* || $ENGINE != apt ]] || sha256sum <"$APT_KEY"
}

# Options of mmdebstrap that the choices come to.
suite_options() {
	[[ $CHECK_VALID_UNTIL == yes ]] || printf '%s\n' '--aptopt=Acquire::Check-Valid-Until "false"'
}

# Points NAME at TARGET in one step.
link() {
	local target=$1 name=$2
	[[ $(readlink -- "$name" || true) == "$target" ]] && return
	ln -sfn -- "$target" "$name.new.$$"
	mv -Tf -- "$name.new.$$" "$name"
}

# Makes $1 what CURRENT names, and what that named until now what PREVIOUS names. Each is one link.
switch() {
	local target=$1 current=$2 previous=$3 before
	before=$(readlink -- "$current" || true)
	[[ $before == "$target" ]] && return
	[[ -z $before || ! -e $(dirname -- "$current")/$before ]] || link "$before" "$previous"
	link "$target" "$current"
}

# Makes what PREVIOUS ($2) names current ($1), and the other way. If this is cut off, it is the one that was left whose name is lost.
swap() {
	local current=$1 previous=$2 left target
	left=$(readlink -- "$current" || true)
	target=$(readlink -- "$previous" || true)
	[[ -n $target ]] || return 0
	link "$target" "$current"
	[[ -z $left || ! -e $(dirname -- "$current")/$left ]] || link "$left" "$previous"
}

# Keeps that the operator went back to what CURRENT ($1) names, from a recipe whose names fit PATTERN ($2).
remember_back() { printf '%s %s\n' "$2" "$(readlink -- "$1")" >"${1%.squashfs}.back"; }
forget_back() { rm -f -- "${1%.squashfs}.back"; }

# What CURRENT ($1) names if its name fits PATTERN ($2), else the newest beside it that does; nothing if there is none. Where the operator
# went back from this recipe, it is what CURRENT names all the same.
choose() {
	local dir current pattern=$2 path newest=''
	dir=$(dirname -- "$1")
	current=$(readlink -- "$1" || true)
	[[ -n $current && -e $dir/$current ]] || current=''
	for path in "$dir"/$pattern; do
		[[ -e $path ]] || continue
		[[ -n $newest && ! $path -nt $newest ]] || newest=$path
	done
	# shellcheck disable=SC2053 # a pattern is meant
	if [[ -n $current && ($current == $pattern || -n $newest && $(cat -- "${1%.squashfs}.back" 2>/dev/null) == "$pattern $current") ]]; then
		printf '%s' "$current"
		return
	fi
	printf '%s' "${newest##*/}"
}

# Removes what fits PATTERN ($2) in DIR ($1), except what the links in $3... name and what is beside it under the same name. Machines
# that run hold what they have booted, and do not need the file.
remove_unused() {
	local dir=$1 pattern=$2 path link kept
	shift 2
	for path in "$dir"/$pattern; do
		kept=
		[[ ! -L $path && -e $path ]] || continue
		for link in "$@"; do
			link=$(readlink -- "$link" || true)
			[[ -z $link || ${path##*/} != "${link%.squashfs}"* ]] || kept=1
		done
		[[ -n $kept ]] || {
			say "removing ${path##*/}, which is neither the current nor the previous one"
			rm -rf --one-file-system -- "$path"
		}
	done
}
