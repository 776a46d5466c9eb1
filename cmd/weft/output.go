package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/flow"
)

// formats are the possible values of -o.
var formats = []string{"table", "wide", "name", "json", "yaml"}

// format returns the value of -o.
func format(cmd *cobra.Command) (string, error) {
	f, err := cmd.Flags().GetString("output")
	if err == nil && !slices.Contains(formats, f) {
		err = usageError{fmt.Errorf("there is no output %q; choose from %s", f, strings.Join(formats, ", "))}
	}
	return f, err
}

// column is a column of a table. Wide ones are shown only with -o wide.
type column struct {
	head string
	wide bool
}

// columns makes columns of heads; a leading * makes one wide.
func columns(heads ...string) []column {
	cols := make([]column, len(heads))
	for i, h := range heads {
		cols[i].head, cols[i].wide = strings.CutPrefix(h, "*")
	}
	return cols
}

// table is a listing for people. Rows are sorted by their cells from left to right, so that
// the same state always looks the same.
type table struct {
	columns []column
	rows    [][]string
	// name is the column that -o name prints.
	name int
	// empty is printed instead of a table without rows.
	empty string
	// ordered keeps the rows in their order.
	ordered bool
	// widths are the widths of the columns written so far.
	widths []int
}

// sorted returns t with its rows in order, each once: what two clusters report alike is one
// row.
func (t *table) sorted() *table {
	if !t.ordered {
		slices.SortStableFunc(t.rows, slices.Compare)
		t.rows = slices.CompactFunc(t.rows, slices.Equal)
	}
	return t
}

// show prints answers as -o asks. JSON is one document: the answer, or a list if there can
// be several, as when several clusters are asked.
func show[T any](cmd *cobra.Command, answers []T, t table) error {
	f, err := format(cmd)
	if err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	switch f {
	case "json":
		if len(answers) != 1 || several(cmd) {
			return document(out, f, append([]T{}, answers...), 0)
		}
		return document(out, f, answers[0], 0)
	case "yaml":
		for i, a := range answers {
			if err := document(out, f, a, i); err != nil {
				return err
			}
		}
		return nil
	}
	t.sorted()
	switch {
	case f == "name":
		for _, row := range t.rows {
			if _, err := fmt.Fprintln(out, flow.Printable(t.fullName(cmd, row))); err != nil {
				return err
			}
		}
	case len(t.rows) == 0:
		if t.empty != "" {
			fmt.Fprintln(cmd.ErrOrStderr(), t.empty)
		}
	default:
		return t.write(out, f == "wide", colourful(out))
	}
	return nil
}

// fullName is what -o name prints: the name, preceded by cluster and namespace unless the
// command line fixes them.
func (t *table) fullName(cmd *cobra.Command, row []string) string {
	name := row[t.name]
	for i := len(t.columns) - 1; i >= 0; i-- {
		open := t.columns[i].head == "NAMESPACE" && namespace(cmd) == "" || t.columns[i].head == "CLUSTER" && several(cmd)
		if open && i != t.name && row[i] != "" {
			name = row[i] + "/" + name
		}
	}
	return name
}

// document prints one value as JSON or YAML.
func document(out io.Writer, f string, v any, i int) error {
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("write as %s: %w", f, err)
	}
	if f == "json" {
		_, err := out.Write(text.Bytes())
		return err
	}
	y, err := yaml.JSONToYAML(text.Bytes())
	if err != nil {
		return fmt.Errorf("write as %s: %w", f, err)
	}
	if i > 0 {
		if _, err := fmt.Fprintln(out, "---"); err != nil {
			return err
		}
	}
	_, err = out.Write(y)
	return err
}

// write aligns the columns, two spaces apart. Control characters in cells are escaped, and
// an empty cell shows as a dash so that columns can be counted. Writing the table again
// with other rows continues below the first ones.
func (t *table) write(out io.Writer, wide, colour bool) error {
	var lines [][]string
	headed := t.widths == nil
	if headed {
		lines = append(lines, nil)
		for _, c := range t.columns {
			if wide || !c.wide {
				lines[0] = append(lines[0], c.head)
			}
		}
		t.widths = make([]int, len(lines[0]))
	}
	for _, row := range t.rows {
		var line []string
		for i, c := range t.columns {
			if wide || !c.wide {
				cell := flow.Printable(row[i])
				if cell == "" {
					cell = "-"
				}
				line = append(line, cell)
			}
		}
		lines = append(lines, line)
	}
	for _, line := range lines {
		for i, cell := range line {
			t.widths[i] = max(t.widths[i], utf8.RuneCountInString(cell))
		}
	}
	for n, line := range lines {
		var b strings.Builder
		for i, cell := range line {
			pad := ""
			if i+1 < len(line) {
				pad = strings.Repeat(" ", t.widths[i]-utf8.RuneCountInString(cell)+2)
			}
			if colour {
				cell = paint(cell, headed && n == 0)
			}
			b.WriteString(cell + pad)
		}
		if _, err := fmt.Fprintln(out, b.String()); err != nil {
			return err
		}
	}
	return nil
}

// headings turns an agent's column names, such as PodCIDR, into column heads.
func headings(names []string) []string {
	heads := make([]string, len(names))
	for i, n := range names {
		heads[i] = strings.ToUpper(n)
	}
	return heads
}

// colours are the terminal colours of words that describe a state.
var colours = map[string]string{
	"ready": "32", "up": "32", "done": "32", "ok": "32", "alive": "32", "FORWARDED": "32",
	"silent": "33", "not-ready": "33", "connecting": "33", "held": "33", "pending": "33", "never-connected": "33", "RESET": "33",
	"dead": "31", "down": "31", "refused": "31", "error": "31", "DROPPED": "31", "REFUSED": "31",
}

func paint(cell string, head bool) string {
	code := "1"
	if !head {
		word, _, _ := strings.Cut(cell, ":")
		if code = colours[word]; code == "" {
			return cell
		}
	}
	return "\x1b[" + code + "m" + cell + "\x1b[0m"
}

// colourful reports whether out is a terminal that wants colour (https://no-color.org).
func colourful(out io.Writer) bool {
	f, ok := out.(*os.File)
	return ok && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && term.IsTerminal(int(f.Fd()))
}

// printableLines is flow.Printable for text of several lines.
func printableLines(s string) string {
	lines := strings.Split(s, "\n")
	for i, line := range lines {
		lines[i] = flow.Printable(line)
	}
	return strings.Join(lines, "\n")
}

// age formats a duration as kubectl does, with two units at most.
func age(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second)).Round(time.Second)
	day := 24 * time.Hour
	switch {
	case d < 0:
		return "0s"
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < 10*time.Minute && d%time.Minute >= time.Second:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	case d < 3*time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 8*time.Hour && d%time.Hour >= time.Minute:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	case d < 2*day:
		return fmt.Sprintf("%dh", d/time.Hour)
	}
	return fmt.Sprintf("%dd", d/day)
}

// now is the clock for ages; tests set it.
var now = time.Now

// since returns the age of a moment, or "" for the zero time.
func since(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return age(now().Sub(t).Seconds())
}

// list joins values with commas.
func list[T any](values []T) string {
	texts := make([]string, len(values))
	for i, v := range values {
		texts[i] = fmt.Sprint(v)
	}
	return strings.Join(texts, ",")
}
