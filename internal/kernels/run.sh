#!/bin/bash
# Runs the tests that need a kernel in virtual machines, one for each kernel
# that Weft supports, and prints what failed. The kernels are Debian's (6.18 from
# trixie-backports):
#
#	internal/kernels/run.sh [RELEASE…]      by default 6.1 6.12 6.18
#
#	PACKAGES    tests to run, by default those that load programs or make devices;
#	            ./bpf=TestPodsTalk|TestFull has tests of its own instead of RUN
#	RUN, SKIP   only tests that match, or do not, as in `go test -run`
#	SCENARIOS   scripts to run before them, such as scenarios/smoke.txtar
#	SET         variables of the scripts, as in `weft lab run --set`
#	PATIENCE    how many times longer scripts wait than they say: 10 under emulation
#	MODULES     kernel modules without which the run fails: sctp
#	CPUS, MEMORY_MB, MINUTES   of a machine: 2, 3072, 60
#	NICE        its priority: 15
#	CACHE       for kernels and logs: ${XDG_CACHE_HOME:-~/.cache}/weft-kernels
#	MIRROR      of Debian: http://deb.debian.org
#
# A machine has no disk and no network: everything is in its initramfs. It is
# emulated, as CI has no KVM, and some twenty times slower than a real machine, so
# waits may time out that do not elsewhere. Set ACCEL=kvm where KVM is available.
# Tests that race WireGuard's own timers are skipped under emulation.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."

releases=("$@")
((${#releases[@]})) || releases=(6.1 6.12 6.18)
read -ra packages <<<"${PACKAGES-./bpf ./tunnel ./tunnel/gossip ./tunnel/probe ./meshagent/endpoint ./lab/space ./lab/fabric ./lab}"
read -ra scenarios <<<"${SCENARIOS-}"
cache=${CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/weft-kernels}
mirror=${MIRROR:-http://deb.debian.org}
minutes=${MINUTES:-60}
accel=${ACCEL:-tcg,thread=multi}
# Counts what userspace WireGuard sends until it repeats itself, after 5 s.
slow='TestQuestionThatNobodyUnderstoodIsAskedAgain/userspace$'
patience=${PATIENCE:-10}
# Page tables of five levels, and what keeps a processor from speculating, cost time under
# emulation, and protect nobody.
cpu=max,la57=off
quick=mitigations=off
if [[ $accel != tcg* ]]; then
	slow=
	patience=${PATIENCE:-1}
	cpu=max
	quick=
fi
skip=${SKIP-$slow}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

missing=()
for tool in go:golang apt-get:apt dpkg-deb:dpkg qemu-system-x86_64:qemu-system-x86 cpio:cpio depmod:kmod xz:xz-utils zstd:zstd; do
	PATH=$PATH:/usr/sbin:/sbin command -v "${tool%:*}" >/dev/null || missing+=("${tool#*:}")
done
busybox=$(command -v busybox || true)
[[ -n $busybox ]] && ! ldd "$busybox" >/dev/null 2>&1 || missing+=(busybox-static)
[[ -r $keyring ]] || missing+=(debian-archive-keyring)
if ((${#missing[@]})); then
	echo "test-kernels: missing on this machine: ${missing[*]} (apt-get install ${missing[*]})" >&2
	exit 4
fi
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
exec 9>"$cache/lock"
flock -n 9 || {
	echo "test-kernels: another run is using $cache: wait for it, or set CACHE" >&2
	exit 4
}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# An apt of our own, so that this machine's sources stay as they are.
apt=$cache/apt
mkdir -p "$apt"/{lists,archives}/partial
: >"$apt/status"
for release in "${releases[@]}"; do
	case $release in
	6.1) echo debian bookworm; echo debian-security bookworm-security ;;
	6.12) echo debian trixie; echo debian-security trixie-security ;;
	*) echo debian trixie-backports ;;
	esac
done | sort -u | sed "s|.*|deb [arch=amd64 signed-by=$keyring] $mirror/& main|" >"$apt/sources"
settings=(-q -o APT::Architecture=amd64 -o APT::Architectures::=amd64 -o APT::Sandbox::User=root -o Acquire::Languages=none
	-o Acquire::Retries=3 -o APT::Update::Error-Mode=any
	-o Dir::Etc::SourceList="$apt/sources" -o Dir::Etc::SourceParts=/dev/null -o Dir::State::Status="$apt/status"
	-o Dir::State::Lists="$apt/lists" -o Dir::Cache="$apt")

# newest prints the newest of the packages it reads that is a kernel of a release.
newest() {
	grep -E -- "^linux-image-${1//./\\.}\.[0-9.]+([-+][a-z0-9.]+)*-cloud-amd64$" | sort -V | tail -n 1
}

# unreachable says that a mirror cannot be had.
unreachable() {
	cat "$work/apt" >&2
	echo "test-kernels: $mirror, from which the kernels come, cannot be reached or gave an error (see above): try again when it is back, or set MIRROR to another mirror of Debian" >&2
	return 1
}

# kernel puts the newest kernel of a release into the cache and sets $kernel to
# its folder. Without the mirror, the one that is there will do.
updated=
kernel() {
	local package name
	if [[ -z $updated ]]; then
		updated=yes
		apt-get "${settings[@]}" update >"$work/apt" 2>&1 || updated=failed
	fi
	if [[ $updated == yes ]]; then
		package=$(apt-cache "${settings[@]}" pkgnames "linux-image-$1." | newest "$1" || true)
		if [[ -z $package ]]; then
			echo "test-kernels: Debian has no kernel $1 (no package linux-image-$1.*-cloud-amd64 in bookworm, trixie or trixie-backports): leave it out" >&2
			return 1
		fi
	else
		package=$(cd "$cache" && ls -d linux-image-*/complete 2>/dev/null | sed 's,/complete,,' | newest "$1" || true)
		[[ -n $package ]] || unreachable || return 1
		echo "test-kernels: $mirror cannot be reached: testing $package, which is in the cache" >&2
	fi
	kernel=$cache/$package
	[[ -e $kernel/complete ]] && return
	rm -rf "$kernel"
	mkdir -p "$kernel"
	(cd "$work" && apt-get "${settings[@]}" download "$package" >"$work/apt" 2>&1) || unreachable || return 1
	# Without modules for what no test and no lab has.
	dpkg-deb --fsys-tarfile "$work/$package"_*.deb | tar -x -C "$kernel" --wildcards \
		--exclude='*/kernel/fs/*' --exclude='*/kernel/sound/*' --exclude='*/kernel/drivers/gpu/*' --exclude='*/kernel/drivers/media/*' \
		--exclude='*/kernel/drivers/hid/*' --exclude='*/kernel/drivers/usb/*' --exclude='*/kernel/drivers/scsi/*' --exclude='*/kernel/drivers/ata/*' \
		--exclude='*/kernel/drivers/nvme/*' --exclude='*/kernel/drivers/net/ethernet/*'
	[[ -d $kernel/lib ]] || mv "$kernel/usr/lib" "$kernel/lib"
	find "$kernel/lib/modules" -name '*.ko.xz' -print0 | xargs -0 -r -n 50 -P 2 xz -d
	name=$(basename "$kernel"/lib/modules/*)
	PATH=$PATH:/usr/sbin:/sbin depmod -b "$kernel" "$name"
	touch "$kernel/complete"
}

# All kernels first: one that cannot be had is refused now, not after an hour.
declare -A kernels
for release in "${releases[@]}"; do
	kernel "$release"
	kernels[$release]=$kernel
done

# What all machines have: tools, the tree, and the tests.
root=$work/root
mkdir -p "$root"/{bin,dev,etc,lib,mnt,proc,root,run,sys,tmp,var,tests,src}
ln -s bin "$root/sbin"
ln -s ../run "$root/var/run"
cp -L "$busybox" "$root/bin/busybox"
cp "$here/init.sh" "$root/init"
echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
echo 'root:x:0:' >"$root/etc/group"
printf '127.0.0.1 localhost\n::1 localhost\n' >"$root/etc/hosts"
git ls-files -z | xargs -0 cp --parents -t "$root/src"
export CGO_ENABLED=0
for package in "${packages[@]}"; do
	run=${RUN:-.}
	if [[ $package == *=* ]]; then
		run=${package#*=}
		package=${package%%=*}
	fi
	name=${package#./}
	name=${name//\//-}
	go test -c -tags sctp -trimpath -ldflags '-s -w' -o "$root/tests/$name" "$package"
	echo "$name ${package#./} $run $skip"
done >"$root/tests.list"
go build -trimpath -ldflags '-s -w' -o "$root/bin/weft" ./cmd/weft
printf '%s\n' "${scenarios[@]}" >"$root/scenarios.list"
printf '%s\n' ${MODULES-sctp} >"$root/modules.list"
echo "--patience $patience ${SET:+--set $SET}" >"$root/lab.flags"

failed=()
for release in "${releases[@]}"; do
	kernel=${kernels[$release]}
	name=$(basename "$kernel"/lib/modules/*)
	log=$cache/$release.log
	printf '\n== Linux %s: %s; all of it is in %s\n' "$release" "${scenarios[*]} ${packages[*]%%=*}" "$log"
	# The second archive has the modules, and is unpacked over the first.
	(cd "$root" && find . | cpio --quiet -o -H newc) >"$work/initramfs"
	(cd "$kernel" && find lib/modules -path '*/build' -prune -o -path '*/source' -prune -o -print | cpio --quiet -o -H newc) >>"$work/initramfs"
	ended=0
	timeout --foreground $((minutes * 60)) nice -n "${NICE:-15}" qemu-system-x86_64 \
		-accel "$accel" -cpu "$cpu" -smp "${CPUS:-2}" -m "${MEMORY_MB:-3072}" \
		-nodefaults -no-user-config -display none -serial stdio -no-reboot \
		-kernel "$kernel/boot/vmlinuz-$name" -initrd "$work/initramfs" \
		-append "console=ttyS0 quiet panic=-1 $quick" </dev/null 2>&1 |
		sed -u 's,\r$,,' | tee "$log" | grep --line-buffered -aE '^ *--- FAIL|^(panic|fatal error): |^== |Kernel panic|BUG:|WARNING:|Oops' || ended=${PIPESTATUS[0]}
	grep -aqx '== done: 0 failed' "$log" && continue
	failed+=("$release")
	if [[ $ended == 124 ]]; then
		echo "test-kernels: Linux $release was not done after $minutes minutes: set MINUTES for a slower machine"
	fi
	if [[ -n ${CI:-} ]]; then # where the log is lost
		echo "== the end of what Linux $release printed"
		tail -n 150 "$log"
	fi
done
if ((${#failed[@]})); then
	echo "test-kernels: failed on ${failed[*]}" >&2
	exit 1
fi
echo "test-kernels: passed on ${releases[*]}"
