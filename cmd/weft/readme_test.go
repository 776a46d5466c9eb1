package main

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// The commands in documents are read by the real command line: names, flags and
// number of arguments.
func TestTheCommandsInDocumentsAreUnderstood(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	lines := regexp.MustCompile(`(?m)^ {4}(?:\./)?weft (.*)$`).FindAllStringSubmatch(string(text), -1)
	if len(lines) < 10 {
		t.Fatalf("found only %d commands in the README", len(lines))
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
