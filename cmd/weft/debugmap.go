package main

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/weft-mesh/weft/bpf"
)

// What packets see is in the kernel's maps, with or without an agent, so these commands
// read them there.

// kernelMap describes one map and the Go types of its rows.
type kernelMap struct {
	name       string
	key, value reflect.Type
}

// kernelMaps returns the maps of package bpf, in the order in which a packet meets them.
func kernelMaps() (all []kernelMap) {
	maps := reflect.TypeFor[bpf.Maps]()
	for i := range maps.NumField() {
		lookup, ok := maps.Field(i).Type.MethodByName("Lookup")
		if ok {
			all = append(all, kernelMap{strings.ToLower(maps.Field(i).Name), lookup.Type.In(0), lookup.Type.Out(0)})
		}
	}
	return all
}

// open opens the newest layout of the map, read-only.
func (k kernelMap) open(dir string) (*ebpf.Map, error) {
	if _, err := os.ReadDir(dir); errors.Is(err, fs.ErrPermission) {
		return nil, incapable{fmt.Errorf("only root may read the maps in %s: %w", dir, err)}
	}
	pins, err := filepath.Glob(filepath.Join(dir, "weft_"+k.name+"_v*"))
	if err != nil || len(pins) == 0 {
		return nil, fmt.Errorf("there is no map %s in %s: has `weft agent` run on this machine, with another --bpf-dir?", k.name, dir)
	}
	m, err := ebpf.LoadPinnedMap(newest(pins), &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return nil, fmt.Errorf("open map %s: %w", k.name, err)
	}
	if int(m.KeySize()) != binary.Size(reflect.Zero(k.key).Interface()) || int(m.ValueSize()) != binary.Size(reflect.Zero(k.value).Interface()) {
		m.Close()
		return nil, fmt.Errorf("map %s has the layout of another version of weft", k.name)
	}
	return m, nil
}

// newest returns the pin with the highest version at its end.
func newest(pins []string) string {
	return slices.MaxFunc(pins, func(a, b string) int { return cmp.Or(len(a)-len(b), strings.Compare(a, b)) })
}

// rowsAtOnce is the number of rows that one system call reads.
const rowsAtOnce = 4096

// rows reads the map. In an array, rows of zeros are skipped.
func (k kernelMap) rows(m *ebpf.Map, yield func(key, value reflect.Value)) error {
	if m.Type() == ebpf.LPMTrie { // its batches restart at every call
		key, value := reflect.New(k.key), reflect.New(k.value)
		entries := m.Iterate()
		for entries.Next(key.Interface(), value.Interface()) {
			yield(key.Elem(), value.Elem())
		}
		if err := entries.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
			return fmt.Errorf("read map %s: %w", k.name, err)
		}
		return nil
	}
	var cursor ebpf.MapBatchCursor
	for size := rowsAtOnce; ; {
		keys, values := reflect.MakeSlice(reflect.SliceOf(k.key), size, size), reflect.MakeSlice(reflect.SliceOf(k.value), size, size)
		n, err := m.BatchLookup(&cursor, keys.Interface(), values.Interface(), nil)
		if errors.Is(err, unix.ENOSPC) && n == 0 { // a bucket that does not fit is not started
			size *= 2
			continue
		}
		for i := range n {
			if m.Type() != ebpf.Array || !values.Index(i).IsZero() {
				yield(keys.Index(i), values.Index(i))
			}
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read map %s: %w", k.name, err)
		}
	}
}

// heads returns the field names of key and value.
func (k kernelMap) heads() []string {
	return append(fieldNames(k.key, "KEY"), fieldNames(k.value, "VALUE")...)
}

func (k kernelMap) cells(key, value reflect.Value) []string {
	return append(fieldTexts(key), fieldTexts(value)...)
}

func fieldNames(t reflect.Type, alone string) (names []string) {
	if t.Kind() != reflect.Struct {
		return []string{alone}
	}
	for i := range t.NumField() {
		if name := t.Field(i).Name; !strings.HasPrefix(name, "Pad") {
			names = append(names, strings.ToUpper(name))
		}
	}
	return names
}

func fieldTexts(v reflect.Value) (texts []string) {
	if v.Kind() != reflect.Struct {
		return []string{rowText(v)}
	}
	for i := range v.NumField() {
		if !strings.HasPrefix(v.Type().Field(i).Name, "Pad") {
			texts = append(texts, rowText(v.Field(i)))
		}
	}
	return texts
}

// rowText formats one field; an invalid address is empty. Of a list of structs, only those
// in use are shown.
func rowText(v reflect.Value) string {
	if addr, ok := v.Interface().(bpf.Addr); ok && !addr.Netip().IsValid() {
		return ""
	}
	if port, ok := v.Interface().(bpf.Port); ok {
		return fmt.Sprint(port.Number())
	}
	if mac, ok := v.Interface().([6]uint8); ok {
		return net.HardwareAddr(mac[:]).String()
	}
	if _, ok := v.Interface().(fmt.Stringer); !ok && v.Kind() == reflect.Array && v.Type().Elem().Kind() == reflect.Struct {
		var used []string
		for i := range v.Len() {
			if !v.Index(i).IsZero() {
				used = append(used, fmt.Sprintf("%+v", v.Index(i).Interface()))
			}
		}
		return strings.Join(used, " ")
	}
	return fmt.Sprint(v.Interface())
}

// table has the machine in front of each row: a cluster or node in the row itself is the
// row's subject.
func (k kernelMap) table() table {
	return table{columns: columns(append([]string{"AT"}, k.heads()...)...), name: 1, empty: "map " + k.name + " is empty"}
}

// document returns a row by the names of its columns.
func (t *table) document(row []string) map[string]string {
	named := map[string]string{}
	for i, c := range t.columns {
		named[strings.ToLower(c.head)] = row[i]
	}
	return named
}

// mapNames returns the names of all maps.
func mapNames() []string {
	var names []string
	for _, k := range kernelMaps() {
		names = append(names, k.name)
	}
	return names
}

func debugMapsCommand() *cobra.Command {
	var dir string
	var here machine
	cmd := &cobra.Command{
		Use:   "maps",
		Short: "Show the kernel's maps and their usage",
		Args:  usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			type usage struct {
				At   string `json:"at"`
				Map  string `json:"map"`
				Rows int    `json:"rows"`
				Max  uint32 `json:"max"`
			}
			t := table{columns: columns("AT", "MAP", "ROWS", "MAX"), name: 1, ordered: true}
			at := here.at()
			var all []usage
			for _, k := range kernelMaps() {
				m, err := k.open(dir)
				if err != nil {
					return err
				}
				u := usage{At: at, Map: k.name, Max: m.MaxEntries()}
				err = k.rows(m, func(_, _ reflect.Value) { u.Rows++ })
				m.Close()
				if err != nil {
					return err
				}
				all = append(all, u)
				t.rows = append(t.rows, []string{u.At, u.Map, fmt.Sprint(u.Rows), fmt.Sprint(u.Max)})
			}
			return show(cmd, all, t)
		},
	}
	cmd.Flags().StringVar(&dir, "bpf-dir", bpf.Defaults().PinDir, "where the maps are pinned")
	here.add(cmd)
	return cmd
}

func debugMapCommand() *cobra.Command {
	var dir string
	var here machine
	cmd := &cobra.Command{
		Use:               "map NAME",
		Short:             "Show the rows of a kernel map",
		Long:              "Show the rows of one of the kernel's maps on this machine. Needs root, but no agent.\n\nMaps: " + strings.Join(mapNames(), ", ") + ".",
		Example:           "  weft debug map flows\n  weft debug map policy -o json",
		Args:              usageArgs(cobra.ExactArgs(1)),
		ValidArgsFunction: first(fixed(mapNames()...)),
		RunE: func(cmd *cobra.Command, args []string) error {
			i := slices.IndexFunc(kernelMaps(), func(k kernelMap) bool { return k.name == args[0] })
			if i < 0 {
				return usageError{fmt.Errorf("there is no map %q; choose from %s", args[0], strings.Join(mapNames(), ", "))}
			}
			k := kernelMaps()[i]
			m, err := k.open(dir)
			if err != nil {
				return err
			}
			defer m.Close()
			t := k.table()
			at := here.at()
			documents := []map[string]string{}
			err = k.rows(m, func(key, value reflect.Value) {
				cells := append([]string{at}, k.cells(key, value)...)
				documents, t.rows = append(documents, t.document(cells)), append(t.rows, cells)
			})
			if err != nil {
				return err
			}
			return show(cmd, []any{documents}, t)
		},
	}
	cmd.Flags().StringVar(&dir, "bpf-dir", bpf.Defaults().PinDir, "where the maps are pinned")
	here.add(cmd)
	return cmd
}
