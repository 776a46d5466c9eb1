package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// cpuTime is what all CPUs have done since the machine started, in seconds.
type cpuTime struct{ softirq, busy float64 }

func readCPU() (cpuTime, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return cpuTime{}, err
	}
	return parseCPU(string(text))
}

// tick is the unit of /proc/stat on every architecture that Go knows.
const tick = 0.01

// parseCPU reads the first line of /proc/stat: user, nice, system, idle, iowait, irq,
// softirq, steal, and guests, which are in user too.
func parseCPU(text string) (c cpuTime, err error) {
	line, _, _ := strings.Cut(text, "\n")
	fields := strings.Fields(line)
	if len(fields) < 9 || fields[0] != "cpu" {
		return c, fmt.Errorf("/proc/stat begins with %q, not with the time of all CPUs", line)
	}
	for i, field := range fields[1:9] {
		n, err := strconv.ParseUint(field, 10, 64)
		if err != nil {
			return c, fmt.Errorf("/proc/stat: %w", err)
		}
		switch i {
		case 3, 4: // idle and iowait
			continue
		case 6:
			c.softirq = float64(n) * tick
		}
		c.busy += float64(n) * tick
	}
	return c, nil
}
