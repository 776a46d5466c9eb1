package main

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// Errors about unreadable values say what is expected: the standard library's own errors
// name its functions.

// valueError says that text is not a value of type t.
func valueError(text string, t reflect.Type) error {
	return fmt.Errorf("%q is not %s", text, wanted(t))
}

func wanted(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[netip.Addr]():
		return "an address such as 192.0.2.11"
	case reflect.TypeFor[netip.Prefix]():
		return "a prefix such as 10.1.0.0/16"
	case reflect.TypeFor[time.Duration]():
		return "a duration such as 30s or 5m"
	}
	switch k := t.Kind(); {
	case k >= reflect.Uint && k <= reflect.Uint64:
		return fmt.Sprintf("a whole number from 0 to %d", ^uint64(0)>>(64-t.Bits()))
	case k >= reflect.Int && k <= reflect.Int64:
		return "a whole number"
	case k == reflect.Float64:
		return "a number"
	case k == reflect.Bool:
		return "true or false"
	}
	return "a " + t.String()
}

// flagTypes maps the flags' own type names to types.
var flagTypes = map[string]reflect.Type{
	"int": reflect.TypeFor[int](), "uint16": reflect.TypeFor[uint16](), "uint64": reflect.TypeFor[uint64](), "float64": reflect.TypeFor[float64](),
	"duration": reflect.TypeFor[time.Duration](), "bool": reflect.TypeFor[bool](),
}

// invalidArgument matches cobra's error for an unreadable flag value.
var invalidArgument = regexp.MustCompile(`^invalid argument "(.*)" for "(?:-., )?--([^"]+)" flag: `)

// flagError rewords a flag error as a usage error.
func flagError(cmd *cobra.Command, err error) error {
	if m := invalidArgument.FindStringSubmatch(err.Error()); m != nil {
		if f := cmd.Flag(m[2]); f != nil && flagTypes[f.Value.Type()] != nil {
			return usageError{fmt.Errorf("--%s: %w", m[2], valueError(m[1], flagTypes[f.Value.Type()]))}
		}
	}
	// Flags are read before the words: of a misspelt command's flags nothing is known.
	if words := cmd.Flags().Args(); cmd.HasSubCommands() && len(words) > 0 {
		return subcommand(cmd, words)
	}
	return usageError{hinted{err, fmt.Sprintf("`%s --help` lists the flags", cmd.CommandPath())}}
}

// Patterns in the errors of the packages that read configuration files.
var (
	fileWords   = strings.NewReplacer("error unmarshaling JSON: ", "", "while decoding JSON: ", "", "error converting YAML to JSON: ", "", "json: ", "")
	badAddress  = regexp.MustCompile(`^(?:netip\.)?Parse(Addr|Prefix)\((".*")\): `)
	badType     = regexp.MustCompile(`^cannot unmarshal (\w+) into Go (?:struct field \w+\.(\S+)|value) of type (\S+)`)
	addressType = map[string]reflect.Type{"Addr": reflect.TypeFor[netip.Addr](), "Prefix": reflect.TypeFor[netip.Prefix]()}
)

// wantedInFile says what a configuration file should have in place of a value of another
// type, by the type's name in Go.
func wantedInFile(name string) string {
	for _, t := range []reflect.Type{reflect.TypeFor[uint8](), reflect.TypeFor[uint16](), reflect.TypeFor[uint32](), reflect.TypeFor[uint64](),
		reflect.TypeFor[int](), reflect.TypeFor[int64](), reflect.TypeFor[float64](), reflect.TypeFor[bool]()} {
		if name == t.String() {
			return wanted(t)
		}
	}
	switch {
	case strings.HasPrefix(name, "["):
		return "a list"
	case strings.HasPrefix(name, "map["), strings.HasSuffix(name, "Config"), strings.HasSuffix(name, "Limits"), strings.HasSuffix(name, "Context"):
		return "a mapping"
	}
	return "text"
}

// fileError rewords what is wrong in a configuration file.
func fileError(err error) error {
	text := fileWords.Replace(err.Error())
	if m := badAddress.FindStringSubmatch(text); m != nil {
		return fmt.Errorf("%s is not %s", m[2], wanted(addressType[m[1]]))
	}
	if m := badType.FindStringSubmatch(text); m != nil {
		return fmt.Errorf("%s must be %s", cmp.Or(m[2], "the file"), wantedInFile(m[3]))
	}
	return errors.New(text)
}
