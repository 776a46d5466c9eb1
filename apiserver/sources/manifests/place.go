package manifests

import (
	"bytes"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/weft-mesh/weft/api"
)

// lineInDocument is where a mistake in YAML is, counted from the first line of its document.
var lineInDocument = regexp.MustCompile(`^(not valid YAML: )(?:error converting YAML to JSON: )?(?:yaml: )?line (\d+): `)

// sentence is a mistake with the line of its document, or its own if that is known:
// "/etc/weft/manifests/web.yaml:14: Pod shop/web-1: …".
func sentence(path string, text []byte, p api.Problem) string {
	line := 0
	if p.Document > 0 {
		line = firstLine(text, p.Document)
	}
	if m := lineInDocument.FindStringSubmatch(p.Message); m != nil && line > 0 {
		in, _ := strconv.Atoi(m[2]) // the pattern has digits only
		line, p.Message = documentStart(text, p.Document)+in-1, m[1]+p.Message[len(m[0]):]
	}
	if line > 0 {
		path = fmt.Sprintf("%s:%d", path, line)
	}
	p.File, p.Document = "", 0
	return path + ": " + p.String()
}

// firstLine is the number of the first line of a document that is neither empty nor a
// comment.
func firstLine(text []byte, document int) int {
	start := documentStart(text, document)
	line := 0
	for row := range bytes.Lines(text) {
		line++
		row = bytes.TrimSpace(row)
		if line >= start && len(row) > 0 && row[0] != '#' && !bytes.HasPrefix(row, separator) {
			return line
		}
	}
	return start
}

var separator = []byte("---")

// documentStart is the number of the line after the one that separates a document from the
// one before. Documents count from 1, and those without a single line do not count.
func documentStart(text []byte, document int) int {
	line, start, n, held := 0, 1, 1, false
	for row := range bytes.Lines(text) {
		line++
		if rest, ok := bytes.CutPrefix(row, separator); ok && separates(rest) && held {
			if n++; n > document {
				break
			}
			start, held = line+1, false
			continue
		}
		held = true
	}
	return start
}

// separates reports whether what follows --- on its line makes it a separator.
func separates(rest []byte) bool {
	text := strings.TrimSpace(string(rest))
	return text == "" || text[0] == '#'
}
