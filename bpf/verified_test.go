package bpf

import (
	"cmp"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// maxVerified is how many instructions the verifier may process per program. Its own
// limit is a million; far below it, loading is quick and kernels agree.
const maxVerified = 50_000

// maxGrowth is by how many percent a program may exceed its figure in verifiedFile.
const maxGrowth = 10

// verifiedFile has the instructions that the verifier processed, by kernel and program.
const verifiedFile = "testdata/verified"

var (
	updateVerified = flag.Bool("update", false, "write this kernel's verified instructions to "+verifiedFile)
	verifiedLog    = flag.String("log", "", "with -update: take those of another kernel from what the test printed there (internal/kernels/run.sh keeps it)")
)

// verified is a program on a kernel.
type verified struct{ kernel, program string }

func (v verified) compare(w verified) int {
	var n [2][2]int // 6.9 is before 6.12
	for i, kernel := range []string{v.kernel, w.kernel} {
		_, _ = fmt.Sscanf(kernel, "%d.%d", &n[i][0], &n[i][1])
	}
	return cmp.Or(cmp.Compare(n[0][0], n[1][0]), cmp.Compare(n[0][1], n[1][1]), cmp.Compare(v.program, w.program))
}

var verifiedLine = regexp.MustCompile(`(?m)(?:^|verified )(\d+\.\d+) (\w+) (\d+)\r?$`)

func readVerified(t *testing.T, path string) map[verified]int {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	all := map[verified]int{}
	for _, m := range verifiedLine.FindAllStringSubmatch(string(text), -1) {
		all[verified{m[1], m[2]}], _ = strconv.Atoi(m[3])
	}
	return all
}

func writeVerified(t *testing.T, all map[verified]int) {
	t.Helper()
	var b strings.Builder
	b.WriteString("# Instructions that the verifier processes, by kernel and program, with the constants that make most.\n# go test ./bpf -run TestVerifiedInstructions -update [-log FILE]\n")
	for _, v := range slices.SortedFunc(maps.Keys(all), verified.compare) {
		fmt.Fprintf(&b, "%s %s %d\n", v.kernel, v.program, all[v])
	}
	if err := os.WriteFile(verifiedFile, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

// The verifier's work on each program stays small, and does not grow unnoticed: on kernels of
// which verifiedFile knows, by a tenth at most.
func TestVerifiedInstructions(t *testing.T) {
	now, kernel := verifiedNow(t), runningKernel(t)
	if *updateVerified {
		all := readVerified(t, verifiedFile)
		var other map[verified]int
		if *verifiedLog != "" {
			other = readVerified(t, *verifiedLog)
		}
		// What this kernel cannot load keeps its figure: another of its kind can.
		for _, from := range []map[verified]int{now, other} {
			maps.Copy(all, from)
		}
		spec, err := loadDatapath()
		if err != nil {
			t.Fatal(err)
		}
		maps.DeleteFunc(all, func(v verified, _ int) bool { return spec.Programs[v.program] == nil })
		writeVerified(t, all)
	}
	golden := readVerified(t, verifiedFile)
	known := slices.ContainsFunc(slices.Collect(maps.Keys(golden)), func(v verified) bool { return v.kernel == kernel })
	if !known {
		t.Logf("%s has no figures of Linux %s: programs may have %d instructions each", verifiedFile, kernel, maxVerified)
	}
	for _, v := range slices.SortedFunc(maps.Keys(now), verified.compare) {
		n, want := now[v], golden[v]
		t.Logf("verified %s %s %d", v.kernel, v.program, n)
		if n > maxVerified {
			t.Errorf("%s: %d verified instructions, want at most %d", v.program, n, maxVerified)
		}
		switch {
		case known && want == 0:
			t.Errorf("%s is not in %s: add it with -update", v.program, verifiedFile)
		case known && n*100 > want*(100+maxGrowth):
			t.Errorf("%s: %d verified instructions are more than %d %% beyond %d: simplify it, or accept it with -update", v.program, n, maxGrowth, want)
		}
	}
}

// A program that disappears leaves no figure behind, and each kernel that the tests cover has all
// programs.
func TestVerifiedInstructionsAreOfEveryProgram(t *testing.T) {
	spec, err := loadDatapath()
	if err != nil {
		t.Fatal(err)
	}
	golden := readVerified(t, verifiedFile)
	for v, n := range golden {
		if spec.Programs[v.program] == nil {
			t.Errorf("%s: there is no program %s", verifiedFile, v.program)
		}
		if n > maxVerified {
			t.Errorf("%s: %d instructions of %s are more than %d", verifiedFile, n, v.program, maxVerified)
		}
	}
	for _, kernel := range []string{"6.1", "6.12", "6.18"} {
		for program := range spec.Programs {
			if golden[verified{kernel, program}] == 0 {
				t.Errorf("%s has no figure of %s on Linux %s", verifiedFile, program, kernel)
			}
		}
	}
}

// verifiedNow loads every program with every choice of constants that decides about branches, and
// returns the most instructions of each.
func verifiedNow(t *testing.T) map[verified]int {
	t.Helper()
	dir, kernel, most := ownNamespaces(t), runningKernel(t), map[verified]int{}
	for _, unreachable := range []Unreachable{UnreachableReset, UnreachableDrop} {
		for _, ethernet := range []bool{false, true} {
			c := smallConfig(dir)
			c.Unreachable = unreachable
			for program, n := range verifiedWith(t, c, options{ethernetTunnel: ethernet}) {
				v := verified{kernel, program}
				most[v] = max(most[v], n)
			}
		}
	}
	return most
}

func verifiedWith(t *testing.T, c Config, o options) map[string]int {
	t.Helper()
	spec, err := loadDatapath()
	if err != nil {
		t.Fatal(err)
	}
	if err := configure(spec, c, o); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Clean(c.PinDir), 0o700); err != nil {
		t.Fatal(err)
	}
	maps, _, err := openMaps(spec, c.PinDir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer closeMaps(maps)
	if _, err := btf.LoadKernelSpec(); err != nil {
		t.Logf("not loaded without BTF of the kernel: %s", strings.Join(strandedPrograms, ", "))
		for _, name := range strandedPrograms {
			delete(spec.Programs, name)
		}
	}
	all, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: maps})
	if err != nil {
		t.Fatal(err)
	}
	defer all.Close()
	counts := map[string]int{}
	for name, p := range all.Programs {
		info, err := p.Info()
		if err != nil {
			t.Fatal(err)
		}
		n, ok := info.VerifiedInstructions()
		if !ok || n == 0 {
			t.Fatalf("%s: the kernel does not tell verified instructions", name)
		}
		counts[name] = int(n)
	}
	return counts
}

// runningKernel is the kernel's series, such as 6.18.
func runningKernel(t *testing.T) string {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	release := unix.ByteSliceToString(u.Release[:])
	series := regexp.MustCompile(`^\d+\.\d+`).FindString(release)
	if series == "" {
		t.Fatalf("kernel release %q has no series", release)
	}
	return series
}
