package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// textsOf are the files that the patterns name, by name.
func textsOf(t *testing.T, patterns ...string) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, pattern := range patterns {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %v, %v", pattern, files, err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			out[file] = string(text)
		}
	}
	return out
}

func documents(t *testing.T) map[string]string {
	return textsOf(t, "../../*.md", "../../deploy/*.md", "../../docs/*.md")
}

// documented are the commands in the documents' indented blocks, without "weft".
func documented(t *testing.T) (lines []string) {
	t.Helper()
	for _, text := range documents(t) {
		for _, m := range regexp.MustCompile(`(?m)^ {4}(?:\./)?weft (.*)$`).FindAllStringSubmatch(text, -1) {
			line, _, _ := strings.Cut(m[1], "  #")
			line, _, _ = strings.Cut(line, " > ")
			lines = append(lines, line)
		}
	}
	if len(lines) < 40 {
		t.Fatalf("found only %d commands in the documents", len(lines))
	}
	return lines
}

// words are the names of a command and of the flags in a command line, "" if there is no
// such command.
func words(line string) (path string, flags []string) {
	root := rootCommand()
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	cmd, rest, err := root.Find(strings.Fields(line))
	if err != nil || cmd == root || cmd.ParseFlags(rest) != nil {
		return "", nil
	}
	for _, word := range strings.Fields(line) {
		long, ok := strings.CutPrefix(word, "--")
		long, _, _ = strings.Cut(long, "=")
		if short := strings.TrimPrefix(word, "-"); !ok && len(short) == 1 && short != word {
			if f := cmd.Flags().ShorthandLookup(short); f != nil {
				long, ok = f.Name, true
			}
		}
		if ok && long != "" {
			flags = append(flags, long)
		}
	}
	return cmd.CommandPath(), flags
}

// The commands in the documents run: each is typed, and each of its flags along with it, by
// a scenario, by a script of this folder, by a unit that labs start, or by TestLabByHand.
func TestTheCommandsInDocumentsRun(t *testing.T) {
	typed := map[string]map[string]bool{}
	says := func(line string) {
		path, flags := words(line)
		if typed[path] == nil {
			typed[path] = map[string]bool{}
		}
		for _, f := range flags {
			typed[path][f] = true
		}
	}
	for _, text := range textsOf(t, "../../scenarios/*.txtar", "../../scenarios/kubernetes/*.txtar", "testdata/script/*.txtar", "../../deploy/systemd/*.service") {
		script, _, _ := strings.Cut(text, "\n-- ")
		for _, m := range regexp.MustCompile(`(?m)^.*?\bweft (.*)$`).FindAllStringSubmatch(script, -1) {
			says(strings.ReplaceAll(m[1], "'", ""))
		}
	}
	byHand := regexp.MustCompile(`(?:run\(\d, |\[\]string\{|weft, "lab", |try\()((?:"[^"]*"|[a-z]\w*(?:\.ID)?)(?:, (?:"[^"]*"|\w+(?:\.ID)?))*)`)
	for _, text := range textsOf(t, "../../scenarios/byhand_test.go") {
		for _, m := range byHand.FindAllStringSubmatch(text, -1) {
			says("lab " + strings.NewReplacer(`"`, "", ",", "").Replace(m[1]))
		}
	}
	for _, line := range documented(t) {
		path, flags := words(line)
		if typed[path] == nil {
			t.Errorf("nothing runs weft %s", line)
			continue
		}
		for _, f := range flags {
			if !typed[path][f] {
				t.Errorf("nothing runs %s with --%s, as in weft %s", path, f, line)
			}
		}
	}
}

// What a sentence in the documents tells to type exists.
func TestTheCommandsInSentencesExist(t *testing.T) {
	found := 0
	for file, text := range documents(t) {
		for _, m := range regexp.MustCompile("`(?:\\./)?weft ([a-z][^`\n]*)`").FindAllStringSubmatch(text, -1) {
			found++
			if path, _ := words(m[1]); path == "" {
				t.Errorf("%s: there is no weft %s", file, m[1])
			}
		}
	}
	if found < 20 {
		t.Errorf("found only %d", found)
	}
}

// The commands in the documents are parsed by the real command line: names, flags and
// number of arguments.
func TestTheCommandsInDocumentsAreUnderstood(t *testing.T) {
	for _, line := range documented(t) {
		args := strings.Fields(line)
		root := rootCommand()
		cmd, rest, err := root.Find(args)
		if err != nil || cmd == root {
			t.Errorf("weft %s: %v", line, err)
			continue
		}
		if err := cmd.ParseFlags(rest); err != nil {
			t.Errorf("weft %s: %v", line, err)
			continue
		}
		if cmd.Args != nil {
			if err := cmd.ValidateArgs(cmd.Flags().Args()); err != nil {
				t.Errorf("weft %s: %v", line, err)
			}
		}
	}
}
