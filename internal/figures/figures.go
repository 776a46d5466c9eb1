// Package figures keeps what benchmarks measured: as lines of JSON that can be read again, and
// as curves, small panels in one SVG.
//
// What is measured, and what counts as good, is up to the caller.
package figures

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
)

// Digits keeps four digits; 0 of what is no number or infinite.
func Digits(v float64) float64 {
	if v == 0 || math.IsNaN(v) || math.IsInf(v, 0) {
		return 0
	}
	scale := math.Pow(10, 3-math.Floor(math.Log10(math.Abs(v))))
	return math.Round(v*scale) / scale
}

// Read reads what an earlier run printed; lacks says what a line lacks to be a figure, or "".
func Read[F any](r io.Reader, lacks func(F) string) (all []F, err error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for n := 1; lines.Scan(); n++ {
		if strings.TrimSpace(lines.Text()) == "" {
			continue
		}
		var f F
		if err := json.Unmarshal(lines.Bytes(), &f); err != nil {
			return nil, fmt.Errorf("line %d is not a figure: %w", n, err)
		}
		if what := lacks(f); what != "" {
			return nil, fmt.Errorf("line %d is not a figure: it lacks %s", n, what)
		}
		all = append(all, f)
	}
	return all, lines.Err()
}

// Keep writes figures as path.jsonl and their drawing as path.svg.
func Keep[F any](path string, all []F, drawing []byte) error {
	var text bytes.Buffer
	lines := json.NewEncoder(&text)
	lines.SetEscapeHTML(false)
	for _, f := range all {
		if err := lines.Encode(f); err != nil {
			return err
		}
	}
	return errors.Join(os.WriteFile(path+".jsonl", text.Bytes(), 0o644), os.WriteFile(path+".svg", drawing, 0o644))
}
