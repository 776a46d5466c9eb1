package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// process is one of Weft's processes on a machine of the lab.
type process struct {
	name string
	pid  int
}

// findProcess finds a process in the cgroup of its machine by its command.
func findProcess(cgroup, name string) (process, error) {
	text, err := os.ReadFile(filepath.Join(cgroup, "cgroup.procs"))
	if err != nil {
		return process{}, err
	}
	for _, pid := range strings.Fields(string(text)) {
		args, err := os.ReadFile(filepath.Join("/proc", pid, "cmdline"))
		if err != nil {
			continue // it has ended
		}
		if words := bytes.Split(args, []byte{0}); len(words) > 1 && string(words[1]) == name {
			n, err := strconv.Atoi(pid)
			return process{name, n}, err
		}
	}
	return process{}, fmt.Errorf("no process %s in %s", name, cgroup)
}

// cpu is the CPU time of all threads of the process.
func (p process) cpu() (sum time.Duration, err error) {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", p.pid))
	if err != nil || len(threads) == 0 {
		return 0, fmt.Errorf("process %s has ended", p.name)
	}
	for _, path := range threads {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // the thread has ended
		}
		ns, _, _ := strings.Cut(string(text), " ")
		n, err := strconv.ParseInt(ns, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", path, err)
		}
		sum += time.Duration(n)
	}
	return sum, nil
}

// resident is the memory of the process, in bytes.
func (p process) resident() (uint64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
	if err != nil {
		return 0, err
	}
	return statusField(string(text), "VmRSS")
}

// statusField reads a field of /proc/PID/status that is in kB.
func statusField(status, name string) (uint64, error) {
	for line := range strings.Lines(status) {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			kib, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("no %s", name)
}

// received is the bytes that came in over a device in the process's network namespace.
func (p process) received(device string) (uint64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", p.pid))
	if err != nil {
		return 0, err
	}
	return deviceReceived(string(text), device)
}

func deviceReceived(text, device string) (uint64, error) {
	for line := range strings.Lines(text) {
		name, rest, ok := strings.Cut(line, ":")
		if ok && strings.TrimSpace(name) == device {
			n, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
			return strconv.ParseUint(n, 10, 64)
		}
	}
	return 0, fmt.Errorf("no device %s", device)
}

// pressure is for how long, since the machine started, something has waited for a CPU.
func pressure() (time.Duration, error) {
	text, err := os.ReadFile("/proc/pressure/cpu")
	if err != nil {
		return 0, err
	}
	return stalledFor(string(text))
}

func stalledFor(text string) (time.Duration, error) {
	first, _, _ := strings.Cut(text, "\n")
	_, total, ok := strings.Cut(first, "total=")
	if !ok || !strings.HasPrefix(first, "some ") {
		return 0, fmt.Errorf("%q tells no total", first)
	}
	us, err := strconv.ParseInt(total, 10, 64)
	return time.Duration(us) * time.Microsecond, err
}
