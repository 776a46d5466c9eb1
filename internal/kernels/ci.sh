#!/bin/bash
# What CI runs in a virtual machine: the oldest kernel that Weft supports, where things break
# first, and what its own kernel may not have, WireGuard and SCTP. Of the tests those that
# measure no time, because the machine is emulated: programs load and attach, the verifier's
# work is as noted, packets, sockets and associations, and a mesh of two clusters over the
# kernel's WireGuard. `make test-kernels` runs more, on all kernels.
set -euo pipefail
cd "$(dirname "$0")"
loads='TestVerifiedInstructions|TestGenerations'
packets='TestPackets|TestOnePortManyServices|TestOnePortManyLoops|TestOnePortThroughMasquerades|TestOneClientPortManyNodePorts'
stacks='TestPodsTalk|TestSocketsReachServices|TestSCTP'
export PACKAGES="./bpf=^($loads|$packets|$stacks)\$"
export SCENARIOS=scenarios/smoke.txtar MODULES="wireguard sctp" SET=TUNNELS=kernel MINUTES=${MINUTES:-30} NICE=0
exec ./run.sh 6.1
