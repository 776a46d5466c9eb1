// Package script runs stories: txtar files that begin with a list of commands,
// followed by the files that these use.
//
//	# A comment begins a section; the first one is the story in a sentence.
//	weft -c east apply web.yaml
//	* stdout 'ready'         is retried until it holds, for up to 10 s
//	*30s weft status         the same, for up to 30 s
//	! weft apply bad.yaml    must fail
//	? stop agent@east/n1     may fail
//	repeat 20                runs the lines up to end 20 times, with $i from 1
//	end
//
// Words are separated by blanks. 'Single quotes' keep a word together and unchanged;
// outside them, $name and ${name} are replaced. A retried line that checks output
// (stdout, stderr, cmp stdout, json) also reruns the command that printed it. A line
// that is wrong in itself, such as one naming a file that does not exist, always
// fails.
//
// It knows nothing about clusters: its commands are given to it.
package script

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/txtar"
)

// Script is a parsed story.
type Script struct {
	Name  string // of its file
	Story string // the comment at its top
	Lines []Line
	Files []txtar.File
}

// Line is one command, or a block of them.
type Line struct {
	Number  int // in the file, from 1
	Text    string
	Section string // the comment before it; "" if none directly precedes it
	Want    Want
	Retry   time.Duration // how long to retry, and how long a run may take if that is longer than others may; 0 runs it once
	Words   []string      // as written, quotes and variables included
	Body    []Line        // of repeat
}

// Want is how a command should end.
type Want int

// The ends of a command. The zero value is Success.
const (
	Success Want = iota
	Failure
	Either
)

// defaultRetry is how long a line with a plain * is retried.
const defaultRetry = 10 * time.Second

// Parse reads a story. It reports all mistakes at once.
func Parse(name string, data []byte) (*Script, error) {
	for number, line := range slices.Collect(strings.Lines(string(data))) {
		// The txtar package panics on a file without a name.
		if strings.TrimRight(line, "\r\n") == "-- --" {
			return nil, fmt.Errorf("%s: line %d: an attached file has no name", name, number+1)
		}
	}
	archive := txtar.Parse(data)
	p := &parser{lines: strings.Split(string(archive.Comment), "\n")}
	s := &Script{Name: name, Files: archive.Files}
	s.Lines = p.block(false)
	s.Story = p.story
	for _, f := range archive.Files {
		if strings.HasPrefix(f.Name, "/") || strings.Contains(f.Name, "..") {
			p.mistakes = append(p.mistakes, fmt.Errorf("attached file %q: its name must stay below the script's directory", f.Name))
		}
	}
	if err := errors.Join(p.mistakes...); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return s, nil
}

// File returns an attached file; ok is false if there is none.
func (s *Script) File(name string) (data []byte, ok bool) {
	for _, f := range s.Files {
		if f.Name == name {
			return f.Data, true
		}
	}
	return nil, false
}

type parser struct {
	lines    []string
	next     int
	story    string
	section  []string
	mistakes []error
}

func (p *parser) wrong(number int, format string, args ...any) {
	p.mistakes = append(p.mistakes, fmt.Errorf("line %d: "+format, append([]any{number}, args...)...))
}

// block reads lines up to the end of the file, or of a repeat.
func (p *parser) block(inner bool) (lines []Line) {
	begun := p.next
	for p.next < len(p.lines) {
		text := strings.TrimSpace(p.lines[p.next])
		p.next++
		switch {
		case text == "":
			p.endStory()
		case text[0] == '#':
			p.section = append(p.section, strings.TrimSpace(strings.TrimLeft(text, "#")))
		case text == "end" && inner:
			return lines
		default:
			lines = append(lines, p.line(text))
		}
	}
	if inner {
		p.wrong(begun, "repeat has no end")
	}
	return lines
}

// endStory makes the first comment the story if an empty line follows it.
func (p *parser) endStory() {
	if p.story == "" && len(p.section) > 0 {
		p.story, p.section = strings.Join(p.section, " "), nil
	}
}

func (p *parser) line(text string) Line {
	l := Line{Number: p.next, Text: text, Section: strings.Join(p.section, " ")}
	if p.story == "" {
		p.story = l.Section
	}
	p.section = nil
	if strings.Count(text, "'")%2 == 1 {
		p.wrong(l.Number, "%s: a single quote has no end", text)
	}
	l.Words = split(text)
	for len(l.Words) > 0 {
		switch first := l.Words[0]; {
		case first == "!":
			l.Want = Failure
		case first == "?":
			l.Want = Either
		case first[0] == '*':
			l.Retry = defaultRetry
			if first != "*" {
				d, err := time.ParseDuration(first[1:])
				if err != nil || d <= 0 {
					p.wrong(p.next, "%s: write * or a duration, as in *30s", first)
				}
				l.Retry = d
			}
		default:
			if first == "repeat" {
				if l.Retry > 0 || l.Want != Success {
					p.wrong(l.Number, "%s: repeat takes no prefix; put it on the lines inside", text)
				}
				l.Body = p.block(true)
			}
			return l
		}
		l.Words = l.Words[1:]
	}
	p.wrong(l.Number, "%q has no command", text)
	return l
}

// split separates words at blanks outside single quotes. It keeps the quotes.
func split(text string) (words []string) {
	var word strings.Builder
	quoted := false
	for _, r := range text {
		switch {
		case r == '\'':
			quoted = !quoted
		case (r == ' ' || r == '\t') && !quoted:
			if word.Len() > 0 {
				words = append(words, word.String())
				word.Reset()
			}
			continue
		}
		word.WriteRune(r)
	}
	if word.Len() > 0 {
		words = append(words, word.String())
	}
	return words
}

// expand removes the quotes of a word and replaces its variables. An unknown variable
// is an error.
func expand(word string, lookup func(string) (string, bool)) (string, error) {
	var out strings.Builder
	for i, part := range strings.Split(word, "'") {
		if i%2 == 1 {
			out.WriteString(part)
			continue
		}
		for {
			before, rest, found := strings.Cut(part, "$")
			out.WriteString(before)
			if !found {
				break
			}
			name, after := variable(rest)
			if name == "" {
				out.WriteByte('$')
				part = rest
				continue
			}
			value, ok := lookup(name)
			if !ok {
				return "", fmt.Errorf("variable $%s is not set", name)
			}
			out.WriteString(value)
			part = after
		}
	}
	return out.String(), nil
}

// variable reads the name at the start of what follows a dollar sign.
func variable(s string) (name, rest string) {
	if inner, ok := strings.CutPrefix(s, "{"); ok {
		if name, rest, ok = strings.Cut(inner, "}"); ok {
			return name, rest
		}
		return "", s
	}
	end := strings.IndexFunc(s, func(r rune) bool {
		return r != '_' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	})
	if end < 0 {
		end = len(s)
	}
	return s[:end], s[end:]
}

// times reads how often a repeat runs.
func times(words []string) (int, error) {
	if len(words) == 2 {
		if n, err := strconv.Atoi(words[1]); err == nil && n > 0 {
			return n, nil
		}
	}
	return 0, errors.New("write repeat and a number above zero")
}
