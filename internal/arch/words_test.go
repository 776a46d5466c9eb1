package arch

import (
	"regexp"
	"strings"
	"testing"
)

// What does not belong in any file. The words are assembled here so that this file does
// not contain them.
var unwanted = map[string]*regexp.Regexp{
	"unfinished work":         regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|XX` + `X|HA` + `CK)\b`),
	"a path of one's machine": regexp.MustCompile(`(^|[\s"'=(:` + "`" + `])/(home|root|Users|wo` + `rk)/\w`),
	"what is not there yet":   regexp.MustCompile(`(?i)\b(not (yet )?imple` + `mented|place` + `holder|coming s` + `oon)\b`),
	"a merge that went wrong": regexp.MustCompile(`(?m)^(<{7}|>{7}) `),
}

func TestNoFileHoldsWhatDoesNotBelong(t *testing.T) {
	for _, name := range sources(t) {
		if !plain(name) {
			continue
		}
		for number, line := range strings.Split(read(t, name), "\n") {
			for what, re := range unwanted {
				if re.MatchString(line) {
					t.Errorf("%s:%d: %s: %s", name, number+1, what, strings.TrimSpace(line))
				}
			}
			if strings.HasSuffix(line, " ") && !strings.HasSuffix(name, ".txtar") {
				t.Errorf("%s:%d: trailing blanks", name, number+1)
			}
		}
	}
}

// plain tells text from objects and binaries.
func plain(name string) bool {
	for _, end := range []string{".go", ".c", ".h", ".md", ".sh", ".yaml", ".service", ".txtar", "Makefile", ".ci/run", "go.mod", ".gitignore"} {
		if strings.HasSuffix(name, end) {
			return true
		}
	}
	return false
}
