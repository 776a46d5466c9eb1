package script

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Builtins are the commands that every script has, beside those of its engine.
func Builtins() map[string]Command { return builtins }

var builtins map[string]Command

// Set in init because the functions in the table refer to the table.
func init() {
	builtins = map[string]Command{
		"stdout": {Usage: "[-count=N] REGEXP", Summary: "the last command's standard output matches, or has N matches", Run: onOutput(func(s *State) string { return s.Stdout })},
		"stderr": {Usage: "[-count=N] REGEXP", Summary: "the last command's standard error matches, or has N matches", Run: onOutput(func(s *State) string { return s.Stderr })},
		"grep":   {Usage: "[-count=N] REGEXP FILE", Summary: "a file matches, or has N matches", Run: grep},
		"cmp":    {Usage: "FILE|stdout|stderr FILE", Summary: "two texts are equal", Run: compare},
		"holds":  {Usage: "FILE|stdout|stderr FILE", Summary: "a text contains every line of another", Run: contain},
		"json":   {Usage: "PATH =|!=|~|<|> VALUE", Summary: "compares a value in the JSON that the last command printed", Run: onJSON},
		"save":   {Usage: "FILE", Summary: "saves the last command's standard output", Run: save},
		"copies": {Usage: "N FILE TO", Summary: "writes N copies of a file into another, with ${i} counting from 1", Run: copies},
		"env":    {Usage: "NAME=VALUE...", Summary: "sets variables that `weft lab run --set` does not; the value stdout stands for the last command's standard output", Run: setEnv},
		"take":   {Usage: "NAME REGEXP", Summary: "sets a variable to what the regexp's group matches in the last command's output", Run: take},
		"repeat": {Usage: "N|$NAME … end", Summary: "runs the lines up to end N times, with $i counting from 1"},
	}
}

// looksAtOutput reports whether a command checks what another one printed.
func looksAtOutput(args []string) bool {
	return slices.Contains([]string{"stdout", "stderr", "json", "take"}, args[0]) ||
		slices.Contains([]string{"cmp", "holds"}, args[0]) && len(args) > 1 && (args[1] == "stdout" || args[1] == "stderr")
}

func usage(name string) error { return misuse("usage: %s %s", name, builtins[name].Usage) }

func onOutput(text func(*State) string) func(context.Context, *State, []string) error {
	return func(_ context.Context, s *State, args []string) error { return match(text(s), args) }
}

func match(text string, args []string) error {
	count := -1
	if len(args) > 0 && strings.HasPrefix(args[0], "-count=") {
		n, err := strconv.Atoi(strings.TrimPrefix(args[0], "-count="))
		if err != nil {
			return misuse("%s: write -count= and a number", args[0])
		}
		count, args = n, args[1:]
	}
	if len(args) != 1 {
		return misuse("give one regular expression, in single quotes if it contains blanks")
	}
	re, err := regexp.Compile("(?m)" + args[0])
	if err != nil {
		return Misuse{err}
	}
	found := len(re.FindAllStringIndex(text, -1))
	if count >= 0 && found != count {
		return fmt.Errorf("it occurs %d times, not %d", found, count)
	}
	if count < 0 && found == 0 {
		return errors.New("it does not occur")
	}
	return nil
}

func grep(_ context.Context, s *State, args []string) error {
	if len(args) < 2 {
		return usage("grep")
	}
	data, err := os.ReadFile(s.Path(args[len(args)-1]))
	if err != nil {
		return Misuse{err}
	}
	return match(string(data), args[:len(args)-1])
}

func (s *State) text(name string) (string, error) {
	switch name {
	case "stdout":
		return s.Stdout, nil
	case "stderr":
		return s.Stderr, nil
	}
	data, err := os.ReadFile(s.Path(name))
	return string(data), err
}

// compare ignores blanks at the ends of lines: tables have them, and editors remove
// them.
func compare(_ context.Context, s *State, args []string) error {
	texts, err := s.two(args, "cmp")
	if err != nil {
		return err
	}
	for i := range max(len(texts[0]), len(texts[1])) {
		a, b := at(texts[0], i), at(texts[1], i)
		if a != b {
			return fmt.Errorf("line %d differs:\n    %s: %s\n    %s: %s", i+1, args[0], a, args[1], b)
		}
	}
	return nil
}

// contain ignores the order of lines and blanks at their ends.
func contain(_ context.Context, s *State, args []string) error {
	texts, err := s.two(args, "holds")
	if err != nil {
		return err
	}
	if len(texts[1]) == 0 {
		return misuse("%s is empty: any text has every line of it", args[1])
	}
	for _, line := range texts[1] {
		if !slices.Contains(texts[0], line) {
			return fmt.Errorf("%s lacks this line of %s:\n    %s", args[0], args[1], line)
		}
	}
	return nil
}

// two reads the lines of two texts.
func (s *State) two(args []string, command string) (texts [2][]string, err error) {
	if len(args) != 2 {
		return texts, usage(command)
	}
	for i, name := range args {
		text, err := s.text(name)
		if err != nil {
			return texts, Misuse{err}
		}
		for line := range strings.Lines(strings.TrimRight(text, " \n")) {
			texts[i] = append(texts[i], strings.TrimRight(line, " \t\n"))
		}
	}
	return texts, nil
}

func at(lines []string, i int) string {
	if i < len(lines) {
		return lines[i]
	}
	return "(no such line)"
}

func save(_ context.Context, s *State, args []string) error {
	if len(args) != 1 {
		return usage("save")
	}
	return os.WriteFile(s.Path(args[0]), []byte(s.Stdout), 0o600)
}

// copies makes many numbered objects from the documents of one file.
func copies(_ context.Context, s *State, args []string) error {
	if len(args) != 3 {
		return usage("copies")
	}
	n, err := strconv.Atoi(args[0])
	if err != nil || n < 1 {
		return usage("copies")
	}
	template, err := os.ReadFile(s.Path(args[1]))
	if err != nil {
		return err
	}
	var out bytes.Buffer
	for i := range n {
		fmt.Fprintf(&out, "---\n%s", bytes.ReplaceAll(template, []byte("${i}"), []byte(strconv.Itoa(i+1))))
	}
	return os.WriteFile(s.Path(args[2]), out.Bytes(), 0o600)
}

func setEnv(_ context.Context, s *State, args []string) error {
	for _, arg := range args {
		name, value, ok := strings.Cut(arg, "=")
		if !ok || name == "" {
			return usage("env")
		}
		if _, given := s.Given[name]; given {
			continue
		}
		if value == "stdout" {
			value = strings.TrimSpace(s.Stdout)
		}
		s.Env[name] = value
	}
	return nil
}

func take(_ context.Context, s *State, args []string) error {
	if len(args) != 2 {
		return usage("take")
	}
	re, err := regexp.Compile("(?m)" + args[1])
	if err != nil {
		return Misuse{err}
	}
	if re.NumSubexp() != 1 {
		return misuse("put the part to take into one group, as in 'port ([0-9]+)'")
	}
	found := re.FindStringSubmatch(s.Stdout)
	if found == nil {
		return errors.New("it does not occur")
	}
	s.Env[args[0]] = found[1]
	return nil
}

// onJSON compares one value. A path consists of field names and list indexes separated
// by dots; [field=value] selects the first element of a list with that field, and # is
// the length of a list: peers[cluster=west].link, nodes.0.name, objects.#.
func onJSON(_ context.Context, s *State, args []string) error {
	if len(args) != 3 {
		return usage("json")
	}
	dec := json.NewDecoder(bytes.NewReader([]byte(s.Stdout)))
	dec.UseNumber()
	var value any
	if err := dec.Decode(&value); err != nil {
		return misuse("the last command printed no JSON: %w", err)
	}
	value, err := descend(value, args[0])
	if err != nil {
		return Misuse{err}
	}
	if value == nil && args[2] != "null" {
		return misuse("there is no %s", args[0])
	}
	got := asText(value)
	holds, err := relate(got, args[1], args[2])
	if err != nil {
		return Misuse{err}
	}
	if holds {
		return nil
	}
	return fmt.Errorf("it is %s", got)
}

func asText(value any) string {
	switch v := value.(type) {
	case string:
		return v
	case nil:
		return "null"
	case json.Number:
		return v.String()
	case []any:
		if len(v) == 0 {
			return "[]"
		}
	}
	text, _ := json.Marshal(value)
	return string(text)
}

func relate(got, operator, want string) (bool, error) {
	switch operator {
	case "=":
		return got == want, nil
	case "!=":
		return got != want, nil
	case "~":
		return regexp.MatchString(want, got)
	case "<", ">":
		a, errA := strconv.ParseFloat(got, 64)
		b, errB := strconv.ParseFloat(want, 64)
		if err := errors.Join(errA, errB); err != nil {
			return false, fmt.Errorf("%s compares numbers: %w", operator, err)
		}
		return operator == "<" && a < b || operator == ">" && a > b, nil
	}
	return false, fmt.Errorf("operator %q: use =, !=, ~, < or >", operator)
}

// descend follows a path. A missing field is null.
func descend(value any, path string) (any, error) {
	for _, step := range strings.Split(strings.NewReplacer("[", ".[", "]", "").Replace(path), ".") {
		if step == "" {
			continue
		}
		switch v := value.(type) {
		case map[string]any:
			value = v[step]
		case []any:
			var err error
			if value, err = element(v, step); err != nil {
				return nil, err
			}
		case nil:
			return nil, nil
		default:
			return nil, fmt.Errorf("%s: there is nothing below %v", step, value)
		}
	}
	return value, nil
}

func element(list []any, step string) (any, error) {
	if step == "#" {
		return json.Number(strconv.Itoa(len(list))), nil
	}
	if name, want, ok := strings.Cut(strings.TrimPrefix(step, "["), "="); ok {
		for _, item := range list {
			if m, ok := item.(map[string]any); ok && asText(m[name]) == want {
				return item, nil
			}
		}
		return nil, nil
	}
	i, err := strconv.Atoi(step)
	if err != nil {
		return nil, fmt.Errorf("%s: use a number, # or [field=value] on a list", step)
	}
	if i < 0 || i >= len(list) {
		return nil, nil
	}
	return list[i], nil
}
