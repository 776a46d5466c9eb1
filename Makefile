# Weft. `make demo` shows what it does, `make test` checks all of it, and
# `make` alone does what CI does; none of them changes the tree.

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS := -s -w -X main.version=$(VERSION)

# The race detector needs a C compiler; CI always has one. One processor,
# because the timers of a testing/synctest bubble share one race context: two
# goroutines that read expired timers at once crash the detector (seen with Go
# 1.26.8, in __tsan::SlotLock). Packages still run beside each other.
RACE := $(if $(shell command -v cc),$(if $(CI)$(WEFT_RACE),-race -cpu=1))
# It would have every process that a test starts wait a second at its end.
export GORACE := atexit_sleep_ms=0

# run builds a command of the tree and becomes it, so that a signal reaches it: `go run` would
# end and leave it behind.
run = go build -o .bin/ ./$(1) && exec .bin/$(notdir $(1))

.PHONY: all
all: lint check-generated test test-guest

.PHONY: build
build: ## put ./weft here
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o weft ./cmd/weft

# The same commit gives the same image. PLATFORMS=local builds for this machine alone.
.PHONY: image
image: ## build the container image, as an archive that registries and runtimes take: .bin/weft-image.tar
	@mkdir -p .bin
	go run ./internal/image -version '$(VERSION)' -created "$$(git show -s --format=%ct HEAD)" -output .bin/weft-image.tar \
		$(if $(PLATFORMS),-platforms $(PLATFORMS))

.PHONY: demo
demo: build ## raise two clusters on this machine, do the main job, show and check it
	./weft lab run --watch scenarios/demo.txtar

# Scenarios measure time, so they run alone and without the race detector; the
# packages' own tests share the machine. What is drawn at random is drawn more often without
# the detector: a seed costs a fifth then.
SEEDS ?= 200
.PHONY: test
test: build ## everything there is to test; what needs root or WireGuard in the kernel where there is that
	go test $(RACE) -timeout 10m $$(go list ./... | grep -v '/scenarios$$')
	go test -count=1 -timeout 10m -run '^(TestSeeds|TestRowByRowIsAsFromScratch|TestModel)$$' ./internal/chaos ./meshagent/program ./bpf -seeds $(SEEDS)
	go test -count=1 -timeout 40m ./scenarios

# Without what it needs, only CI fails: everybody else is told.
.PHONY: test-guest
test-guest: ## the oldest kernel, WireGuard and SCTP of a kernel and a small mesh, in a virtual machine; needs qemu
	@internal/kernels/ci.sh || { status=$$?; test $$status = 4 -a -z "$(CI)"; }

.PHONY: test-kernels
test-kernels: ## what needs a kernel, on Debian's Linux 6.1, 6.12 and 6.18 in virtual machines; needs qemu
	internal/kernels/run.sh

.PHONY: bench
bench: build ## print measurements as JSON lines
	$(call run,internal/bench)

# ROUNDS=1 is a quick look.
.PHONY: bench-datapath
bench-datapath: ## measure packets at each hook beside yardsticks, and compare them with their targets
	$(call run,internal/bench) datapath $(if $(ROUNDS),-rounds $(ROUNDS))

# All sizes take half an hour; their figures and curves are kept in docs. CLUSTERS=10 is
# a quick look at one.
.PHONY: bench-mesh
bench-mesh: build ## measure one agent and API server in a mesh of up to 511 clusters, and draw the curves
	$(call run,internal/benchmesh) $(if $(CLUSTERS),-effort quick -clusters $(CLUSTERS),-docs docs)

# Kubernetes' programs are built once, which takes some ten minutes, and are not part of the
# tree's own module. All sizes take more than an hour; their figures and curves are
# kept in docs. SERVICES=1000 is a quick look at one.
.PHONY: bench-services
bench-services: build kubernetes ## measure services beside kube-proxy in iptables and nftables mode, and draw the curves
	$(call run,internal/benchservices) $(if $(SERVICES),-rounds 3 -services $(SERVICES),-docs docs)

KUBERNETES := scenarios/kubernetes
KUBERNETES_PROGRAMS ?= kube-proxy kube-apiserver kube-controller-manager kubectl
.PHONY: kubernetes
kubernetes: ## build Kubernetes' own programs, those of KUBERNETES_PROGRAMS, and the etcd that they need
	cd $(KUBERNETES) && CGO_ENABLED=0 nice -n 19 go build -p 2 -trimpath -o $(CURDIR)/.bin/kubernetes/ \
		-ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$$(go list -m -f '{{.Version}}' k8s.io/kubernetes)" \
		$(addprefix k8s.io/kubernetes/cmd/,$(KUBERNETES_PROGRAMS))
	cd $(KUBERNETES) && CGO_ENABLED=0 nice -n 19 go build -p 2 -trimpath -o $(CURDIR)/.bin/kubernetes/etcd -ldflags '-s -w' go.etcd.io/etcd/server/v3

# Real Kubernetes clusters in a lab: control plane and kubelets of their own build, with
# Debian's containerd and runc.
KUBERNETES_SCENARIOS ?= scenarios/kubernetes/*.txtar
.PHONY: test-kubernetes
test-kubernetes: build ## scenarios on Kubernetes clusters; needs root, and builds Kubernetes once
	$(MAKE) kubernetes KUBERNETES_PROGRAMS="kube-apiserver kube-controller-manager kube-scheduler kubelet kubectl"
	cd $(KUBERNETES)/coredns && CGO_ENABLED=0 nice -n 19 go build -p 2 -trimpath -o $(CURDIR)/.bin/kubernetes/coredns -ldflags '-s -w' github.com/coredns/coredns
	$(MAKE) image PLATFORMS=local
	./weft lab run --set PROGRAMS=$(CURDIR)/.bin/kubernetes $(KUBERNETES_SCENARIOS)

# Kubernetes' own end-to-end specs of networks, what their pods run, and the cluster's DNS.
.PHONY: kubernetes-suites
kubernetes-suites:
	cd $(KUBERNETES) && CGO_ENABLED=0 nice -n 19 go test -c -p 2 -trimpath -o $(CURDIR)/.bin/kubernetes/e2e.test \
		-ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$$(go list -m -f '{{.Version}}' k8s.io/kubernetes)" ./e2e
	cd $(KUBERNETES) && CGO_ENABLED=0 nice -n 19 go build -p 2 -trimpath -o $(CURDIR)/.bin/kubernetes/agnhost -ldflags '-s -w' k8s.io/kubernetes/test/images/agnhost
	GOBIN=$(CURDIR)/.bin/kubernetes CGO_ENABLED=0 nice -n 19 go install -p 2 -trimpath -ldflags '-s -w' github.com/coredns/coredns@v1.14.2

# SUITES=netpol is one of them, and FOCUS='API|egress' some of its specs; docs/conformance.md has
# the last outcome of each spec in .bin/conformance-reports.
.PHONY: conformance
conformance: build ## run Kubernetes' own specs of networks and keep the results in docs; hours, needs root, containerd and runc
	$(MAKE) kubernetes KUBERNETES_PROGRAMS="kube-apiserver kube-controller-manager kube-scheduler kubelet kubectl"
	$(MAKE) kubernetes-suites
	$(MAKE) image PLATFORMS=local
	$(call run,internal/conformance) -version '$(VERSION)' -agnhost "$$(cd $(KUBERNETES) && go list -f '{{.Dir}}' k8s.io/kubernetes/test/images/agnhost)" \
		$(if $(SUITES),-suites $(SUITES)) $(if $(FOCUS),-focus '$(FOCUS)')

# Simulated meshes for FOR, then real ones in the lab: fifty pods at once, ten times, and
# rounds of a minute or two for FOR as well, or as many as ROUNDS; SEED repeats the first of
# those, without the pods. CI has simulated meshes and one round in short, as tests.
.PHONY: chaos
chaos: FOR ?= 10m
chaos: build ## let everything fail in simulated and in real meshes for FOR (10m) each, and check what must hold
	cd internal/chaos && go test -count=1 -timeout 0 -run TestSeeds -first $$(date +%s) -seeds 1 -for $(FOR)
	$(call run,internal/chaos/labchaos) $(if $(ROUNDS),-rounds $(ROUNDS),-for $(FOR)) $(if $(SEED),-seed $(SEED) -pods=false)

# CI has a few of these rounds, in its scenario.
.PHONY: upgrade
upgrade: ROUNDS ?= 50
upgrade: build ## upgrade all agents under load to a version with other programs and back, ROUNDS times; needs root
	internal/next-version.sh .bin/weft-next
	./weft lab run --next .bin/weft-next --set ROUNDS=$(ROUNDS) scenarios/upgrade.txtar

.PHONY: generate
generate: ## compile the BPF programs again, which needs clang-19, and make Go of .proto files
	go generate ./...

.PHONY: check-generated
check-generated: ## what is committed is what its sources generate
	internal/check-generated.sh

.PHONY: lint
lint: ## gofmt and go vet
	@bad=$$(gofmt -l $$(git ls-files '*.go')); test -z "$$bad" || { echo "run gofmt on: $$bad" >&2; exit 1; }
	go vet ./...
