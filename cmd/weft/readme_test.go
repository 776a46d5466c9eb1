package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The commands in the documents are parsed by the real command line: names, flags and
// number of arguments.
func TestTheCommandsInDocumentsAreUnderstood(t *testing.T) {
	var lines [][]string
	for _, pattern := range []string{"../../*.md", "../../deploy/*.md", "../../docs/*.md"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %v, %v", pattern, files, err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			lines = append(lines, regexp.MustCompile(`(?m)^ {4}(?:\./)?weft (.*)$`).FindAllStringSubmatch(string(text), -1)...)
		}
	}
	if len(lines) < 40 {
		t.Fatalf("found only %d commands in the documents", len(lines))
	}
	for _, m := range lines {
		line, _, _ := strings.Cut(m[1], "  #")
		line, _, _ = strings.Cut(line, " > ")
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
