#!/bin/bash
# Runs the tests that need a kernel in virtual machines, one for each kernel
# that Weft supports, and prints what failed. The kernels are Debian's (6.18 from
# trixie-backports):
#
#	internal/kernels/run.sh [RELEASE…]      by default 6.1 6.12 6.18
#
#	PACKAGES    tests to run, by default those that load programs or make devices
#	RUN, SKIP   only tests that match, or do not, as in `go test -run`
#	SCENARIOS   scripts to run afterwards, such as scenarios/global-service.txtar
#	CPUS, MEMORY_MB, MINUTES   of a machine: 2, 3072, 60
#	CACHE       for kernels and logs: ${XDG_CACHE_HOME:-~/.cache}/weft-kernels
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
accel=${ACCEL:-tcg,thread=multi}
# Counts what userspace WireGuard sends until it repeats itself, after 5 s.
slow='TestQuestionThatNobodyUnderstoodIsAskedAgain/userspace$'
[[ $accel == tcg* ]] || slow=
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
for suite in "debian bookworm" "debian-security bookworm-security" "debian trixie" "debian-security trixie-security" "debian trixie-backports"; do
	echo "deb [arch=amd64 signed-by=$keyring] http://deb.debian.org/$suite main"
done >"$apt/sources"
settings=(-q -o APT::Architecture=amd64 -o APT::Architectures::=amd64 -o APT::Sandbox::User=root -o Acquire::Languages=none
	-o Dir::Etc::SourceList="$apt/sources" -o Dir::Etc::SourceParts=/dev/null -o Dir::State::Status="$apt/status"
	-o Dir::State::Lists="$apt/lists" -o Dir::Cache="$apt")

# kernel puts the newest kernel of a release into the cache and sets $kernel to
# its folder.
updated=
kernel() {
	if [[ -z $updated ]]; then
		apt-get "${settings[@]}" update >"$work/apt" 2>&1 || {
			cat "$work/apt" >&2
			return 1
		}
		updated=yes
	fi
	local package
	package=$(apt-cache "${settings[@]}" pkgnames "linux-image-$1." | grep -E -- '^linux-image-[0-9.]+([-+][a-z0-9.]+)?-cloud-amd64$' | sort -V | tail -n 1)
	if [[ -z $package ]]; then
		echo "test-kernels: Debian has no kernel $1 (no package linux-image-$1.*-cloud-amd64 in bookworm, trixie or trixie-backports): leave it out" >&2
		return 1
	fi
	kernel=$cache/$package
	[[ -e $kernel/complete ]] && return
	rm -rf "$kernel"
	mkdir -p "$kernel"
	(cd "$work" && apt-get "${settings[@]}" download "$package" >/dev/null && dpkg-deb -x "$package"_*.deb "$kernel")
	[[ -d $kernel/lib ]] || mv "$kernel/usr/lib" "$kernel/lib"
	find "$kernel/lib/modules" -name '*.ko.xz' -exec xz -d {} +
	local name
	name=$(basename "$kernel"/lib/modules/*)
	PATH=$PATH:/usr/sbin:/sbin depmod -b "$kernel" "$name"
	touch "$kernel/complete"
}

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
	name=${package#./}
	name=${name//\//-}
	go test -c -trimpath -ldflags '-s -w' -o "$root/tests/$name" "$package"
	echo "$name ${package#./} ${RUN:-.} $skip"
done >"$root/tests.list"
go build -trimpath -ldflags '-s -w' -o "$root/bin/weft" ./cmd/weft
printf '%s\n' "${scenarios[@]}" >"$root/scenarios.list"

# All kernels first: one that cannot be had is refused now, not after an hour.
for release in "${releases[@]}"; do
	kernel "$release"
done

failed=()
for release in "${releases[@]}"; do
	kernel "$release"
	name=$(basename "$kernel"/lib/modules/*)
	log=$cache/$release.log
	printf '\n== Linux %s: %s; all of it is in %s\n' "$release" "${packages[*]} ${scenarios[*]}" "$log"
	# The second archive has the modules, and is unpacked over the first.
	(cd "$root" && find . | cpio --quiet -o -H newc) >"$work/initramfs"
	(cd "$kernel" && find lib/modules -path '*/build' -prune -o -path '*/source' -prune -o -print |
		grep -Ev '/kernel/(fs|sound|drivers/(gpu|media|hid|usb|scsi|ata|nvme|net/ethernet))/' | cpio --quiet -o -H newc) >>"$work/initramfs"
	timeout --foreground $((${MINUTES:-60} * 60)) nice -n 15 qemu-system-x86_64 \
		-accel "$accel" -cpu max -smp "${CPUS:-2}" -m "${MEMORY_MB:-3072}" \
		-nodefaults -no-user-config -display none -serial stdio -no-reboot \
		-kernel "$kernel/boot/vmlinuz-$name" -initrd "$work/initramfs" \
		-append 'console=ttyS0 quiet panic=-1' </dev/null 2>&1 |
		sed -u 's,\r$,,' | tee "$log" | grep --line-buffered -aE '^ *--- FAIL|^(panic|fatal error): |^== |Kernel panic|BUG:|WARNING:|Oops' || true
	grep -aqx '== done: 0 failed' "$log" || failed+=("$release")
done
if ((${#failed[@]})); then
	echo "test-kernels: failed on ${failed[*]}" >&2
	exit 1
fi
echo "test-kernels: passed on ${releases[*]}"
