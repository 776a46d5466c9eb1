package main

import (
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"
)

// setting is one field of a process's configuration: a key in its YAML file and a flag of
// its command. podCIDRs in the file is --pod-cidrs here.
type setting struct {
	index []int // of the field, for reflect
	key   string
	flag  string
	typ   reflect.Type
}

var loggerType = reflect.TypeFor[*slog.Logger]()

// settingsOf lists the fields of a configuration, including those of nested structs:
// limits.flows becomes --limit-flows.
func settingsOf(t reflect.Type, prefix string, at []int) (all []setting) {
	for i := range t.NumField() {
		f := t.Field(i)
		tag, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if !f.IsExported() || tag == "-" || f.Type == loggerType || f.Type.Kind() == reflect.Func || f.Type.Kind() == reflect.Interface {
			continue
		}
		if tag == "" {
			tag = f.Name
		}
		index := append(append([]int(nil), at...), i)
		if f.Type.Kind() == reflect.Struct && !reflect.PointerTo(f.Type).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()) {
			for _, s := range settingsOf(f.Type, prefix+strings.TrimSuffix(kebab(tag), "s")+"-", index) {
				s.key = tag + "." + s.key
				all = append(all, s)
			}
			continue
		}
		all = append(all, setting{index: index, key: tag, flag: prefix + kebab(tag), typ: f.Type})
	}
	return all
}

// kebab turns podCIDRs into pod-cidrs.
func kebab(name string) string {
	var b strings.Builder
	runes := []rune(strings.ReplaceAll(name, "IPv", "Ipv")) // IPv6 is one word
	for i, r := range runes {
		upper := unicode.IsUpper(r)
		afterLower := i > 0 && !unicode.IsUpper(runes[i-1])
		// The last capital in a row starts a word unless only an s follows.
		newWord := i > 0 && unicode.IsUpper(runes[i-1]) && i+1 < len(runes) && unicode.IsLower(runes[i+1]) &&
			string(runes[i+1:]) != "s"
		if upper && i > 0 && (afterLower || newWord) {
			b.WriteByte('-')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}

// configure gives a command --config and a flag for every field of its configuration. The
// returned function applies the file over the defaults and the flags over both. usage has
// the help text of each flag; a field without one is for tests only and gets no flag.
func configure[C any](cmd *cobra.Command, defaults C, usage map[string]string) (read func() (C, error)) {
	flags := cmd.Flags()
	file := flags.String("config", "", "YAML file with the same settings in camelCase")
	values := reflect.ValueOf(defaults)
	var all []setting
	for _, s := range settingsOf(values.Type(), "", nil) {
		text, ok := usage[s.flag]
		if !ok {
			continue
		}
		all = append(all, s)
		v := values.FieldByIndex(s.index)
		switch s.typ.Kind() {
		case reflect.Bool:
			flags.Bool(s.flag, v.Bool(), text)
		case reflect.Slice, reflect.Array:
			var items []string
			for i := range v.Len() {
				items = append(items, fmt.Sprint(v.Index(i)))
			}
			flags.StringSlice(s.flag, items, text)
		default:
			flags.Var(&valueFlag{defaultText(v), typeWord(s.typ)}, s.flag, text)
		}
	}
	if i := slices.IndexFunc(all, func(s setting) bool { return strings.Contains(s.flag, "-") }); i >= 0 {
		flags.Lookup("config").Usage += fmt.Sprintf(": %s for --%s", all[i].key, all[i].flag)
	}
	return func() (C, error) {
		c := defaults
		if *file != "" {
			text, err := os.ReadFile(*file)
			if err != nil {
				return c, usageError{fmt.Errorf("read configuration: %w", err)}
			}
			if err := yaml.UnmarshalStrict(text, &c); err != nil {
				return c, usageError{fmt.Errorf("configuration %s: %w", *file, fileError(err))}
			}
		}
		var errs []error
		target := reflect.ValueOf(&c).Elem()
		for _, s := range all {
			if flags.Changed(s.flag) {
				if err := set(target.FieldByIndex(s.index), cmd, s.flag); err != nil {
					errs = append(errs, fmt.Errorf("--%s: %w", s.flag, err))
				}
			}
		}
		if err := errors.Join(errs...); err != nil {
			return c, usageError{err}
		}
		return c, nil
	}
}

// valueFlag is the flag of a single value, which set reads. It shows its type in the help.
type valueFlag struct{ text, typ string }

func (f *valueFlag) String() string { return f.text }

// Type names the value in the help.
func (f *valueFlag) Type() string { return f.typ }

// Set keeps the text until the configuration is read.
func (f *valueFlag) Set(text string) error {
	f.text = text
	return nil
}

// typeWord names a type in the help of a flag.
func typeWord(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[netip.Addr]():
		return "address"
	case reflect.TypeFor[netip.Prefix]():
		return "prefix"
	case reflect.TypeFor[time.Duration]():
		return "duration"
	}
	if t.Kind() >= reflect.Int && t.Kind() <= reflect.Float64 {
		return "number"
	}
	return "string"
}

// inFile rewords mistakes in a configuration that came from a file: a setting that no flag
// set is called as in the file.
func inFile[C any](cmd *cobra.Command, err error) error {
	if cmd.Flag("config").Value.String() == "" {
		return err
	}
	var all []error
	for _, one := range parts(err) {
		text := one.Error()
		for _, s := range settingsOf(reflect.TypeFor[C](), "", nil) {
			if s.key != s.flag && !cmd.Flags().Changed(s.flag) {
				text = regexp.MustCompile(`(^|[^\w-])`+s.flag+`($|[^\w-])`).ReplaceAllString(text, "${1}"+s.key+"${2}")
			}
		}
		if text != one.Error() {
			one = reworded{one, text}
		}
		all = append(all, one)
	}
	return errors.Join(all...)
}

// reworded is an error with another text.
type reworded struct {
	error
	text string
}

func (e reworded) Error() string { return e.text }
func (e reworded) Unwrap() error { return e.error }

// defaultText returns a default as the help shows it, or "" if it is not set.
func defaultText(v reflect.Value) string {
	if v.IsZero() && v.Kind() == reflect.Struct {
		return ""
	}
	return fmt.Sprint(v)
}

// set stores a flag's value in its field.
func set(field reflect.Value, cmd *cobra.Command, flag string) error {
	switch field.Kind() {
	case reflect.Bool:
		b, err := cmd.Flags().GetBool(flag)
		field.SetBool(b)
		return err
	case reflect.Slice, reflect.Array:
		texts, err := cmd.Flags().GetStringSlice(flag)
		if err != nil {
			return err
		}
		if field.Kind() == reflect.Array && len(texts) != field.Len() {
			return fmt.Errorf("give %d values, with commas", field.Len())
		}
		list := reflect.MakeSlice(reflect.SliceOf(field.Type().Elem()), len(texts), len(texts))
		for i, text := range texts {
			if err := setText(list.Index(i), text); err != nil {
				return err
			}
		}
		if field.Kind() == reflect.Array {
			reflect.Copy(field, list)
		} else {
			field.Set(list)
		}
		return nil
	}
	return setText(field, cmd.Flag(flag).Value.String())
}

// setText reads a single value.
func setText(field reflect.Value, text string) error {
	target := field.Addr().Interface()
	if t, ok := target.(encoding.TextUnmarshaler); ok {
		switch target.(type) {
		case *netip.Addr, *netip.Prefix:
			if t.UnmarshalText([]byte(text)) != nil {
				return valueError(text, field.Type())
			}
			return nil
		}
		return t.UnmarshalText([]byte(text))
	}
	switch field.Kind() {
	case reflect.String:
		field.SetString(text)
		return nil
	case reflect.Int64:
		if d, ok := target.(*time.Duration); ok {
			var err error
			if *d, err = time.ParseDuration(text); err != nil {
				return valueError(text, field.Type())
			}
			return nil
		}
	}
	if err := json.Unmarshal([]byte(text), target); err != nil {
		return valueError(text, field.Type())
	}
	return nil
}

// logFlags adds --log-format and --log-level and returns a function that makes the
// process's logger.
func logFlags(cmd *cobra.Command) func() (*slog.Logger, error) {
	format := cmd.Flags().String("log-format", "text", "text or json")
	level := cmd.Flags().String("log-level", "info", "debug, info, warn or error")
	complete(cmd, "log-format", fixed("text", "json"))
	complete(cmd, "log-level", fixed("debug", "info", "warn", "error"))
	return func() (*slog.Logger, error) {
		var l slog.Level
		if err := l.UnmarshalText([]byte(*level)); err != nil {
			return nil, usageError{fmt.Errorf("--log-level: choose debug, info, warn or error, not %q", *level)}
		}
		options := &slog.HandlerOptions{Level: l}
		switch *format {
		case "text":
			return slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), options)), nil
		case "json":
			return slog.New(slog.NewJSONHandler(cmd.ErrOrStderr(), options)), nil
		}
		return nil, usageError{fmt.Errorf("--log-format: choose text or json, not %q", *format)}
	}
}
