// Package conflist puts the CNI plugin where a container runtime finds it: the program, and
// the network's configuration, into which others may chain plugins of their own.
//
// What the plugin does when it is called is package cni's.
package conflist

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/weft-mesh/weft/statefile"
)

const (
	// Type is the plugin's name in a configuration, and that of its program.
	Type = "weft"
	// File is the configuration's name. A runtime uses the first of its folder by name.
	File = "05-weft.conflist"
	// Network is the name of the network in it.
	Network = "weft"

	// loopback is the name of another plugin that runtimes may need beside ours.
	loopback = "loopback"
)

// Config says what to install where.
type Config struct {
	// ConfDir is the runtime's folder of network configurations, BinDir that of plugins.
	ConfDir, BinDir string
	// Program is the file that becomes the plugin.
	Program string
	// Socket is the agent's, and Spool where removals wait for it: what the plugin needs to
	// know.
	Socket, Spool string
}

// DefaultConfDir and DefaultBinDir are where runtimes look by default.
const (
	DefaultConfDir = "/etc/cni/net.d"
	DefaultBinDir  = "/opt/cni/bin"
)

// entry is the plugin's part of a configuration.
type entry struct {
	Type         string          `json:"type"`
	Socket       string          `json:"socket"`
	Spool        string          `json:"spool"`
	Capabilities map[string]bool `json:"capabilities"`
}

func (c Config) entry() entry {
	return entry{Type, c.Socket, c.Spool, map[string]bool{"ips": true}}
}

// list is a configuration with its fields as they are.
type list map[string]json.RawMessage

// fresh is the configuration as Weft writes it. Runtimes that know version 1.1 use that;
// those before it do not look at cniVersions.
func (c Config) fresh() ([]byte, error) {
	text, err := json.MarshalIndent(struct {
		Version  string   `json:"cniVersion"`
		Versions []string `json:"cniVersions"`
		Name     string   `json:"name"`
		Plugins  []entry  `json:"plugins"`
	}{"1.0.0", []string{"1.0.0", "1.1.0"}, Network, []entry{c.entry()}}, "", "  ")
	return append(text, '\n'), err
}

// plugin is what is of interest of any plugin's part. A file without plugins is one plugin's.
type plugin struct {
	Type   string `json:"type"`
	Socket string `json:"socket"`
	Spool  string `json:"spool"`
}

// pluginsOf reads a configuration of any kind.
func pluginsOf(text []byte) (l list, raw []json.RawMessage, plugins []plugin, err error) {
	if err := json.Unmarshal(text, &l); err != nil {
		return nil, nil, nil, err
	}
	if inside, ok := l["plugins"]; ok {
		if err := json.Unmarshal(inside, &raw); err != nil {
			return nil, nil, nil, fmt.Errorf("plugins: %w", err)
		}
	} else {
		raw = []json.RawMessage{text}
	}
	for i, one := range raw {
		var p plugin
		if err := json.Unmarshal(one, &p); err != nil {
			return nil, nil, nil, fmt.Errorf("plugin %d: %w", i+1, err)
		}
		plugins = append(plugins, p)
	}
	return l, raw, plugins, nil
}

func ours(p plugin) bool { return p.Type == Type }

// InstallNetwork writes the network's configuration if no file of the folder has the plugin.
// One that has it stays as it is, with whatever others have chained into it; only what our
// part says about the agent is corrected, and only in our own file. The error says what keeps
// the runtime from using it.
func (c Config) InstallNetwork() error {
	if err := os.MkdirAll(c.ConfDir, 0o755); err != nil {
		return err
	}
	names, err := c.files()
	if err != nil {
		return err
	}
	path := filepath.Join(c.ConfDir, File)
	at := File
	switch text, err := os.ReadFile(path); {
	case err == nil:
		if err := c.correct(path, text); err != nil {
			return err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	default:
		if at, err = c.elsewhere(names); err != nil {
			return err
		}
		if at != "" {
			break
		}
		text, err := c.fresh()
		if err != nil {
			return err
		}
		if err := statefile.Write(path, text); err != nil {
			return err
		}
		at = File
	}
	return c.first(names, at)
}

// correct updates our part of our file.
func (c Config) correct(path string, text []byte) error {
	l, raw, plugins, err := pluginsOf(text)
	if err != nil {
		return fmt.Errorf("%s cannot be read: %w; repair or delete it, and it is written again", path, err)
	}
	i := slices.IndexFunc(plugins, ours)
	if i < 0 || l["plugins"] == nil {
		return fmt.Errorf("%s has no plugin of type %s in its list; delete it, and it is written again", path, Type)
	}
	if plugins[i].Socket == c.Socket && plugins[i].Spool == c.Spool {
		return nil
	}
	var own list
	if err := json.Unmarshal(raw[i], &own); err != nil {
		return err
	}
	for key, value := range map[string]string{"socket": c.Socket, "spool": c.Spool} {
		if own[key], err = json.Marshal(value); err != nil {
			return err
		}
	}
	if raw[i], err = json.Marshal(own); err != nil {
		return err
	}
	if l["plugins"], err = json.Marshal(raw); err != nil {
		return err
	}
	text, err = json.MarshalIndent(l, "", "  ")
	if err != nil {
		return err
	}
	return statefile.Write(path, append(text, '\n'))
}

// elsewhere finds the plugin in a file that somebody else wrote.
func (c Config) elsewhere(names []string) (at string, err error) {
	for _, name := range names {
		text, err := os.ReadFile(filepath.Join(c.ConfDir, name))
		if err != nil {
			continue
		}
		_, _, plugins, err := pluginsOf(text)
		if err != nil {
			continue // a stranger's
		}
		if i := slices.IndexFunc(plugins, ours); i >= 0 {
			if p := plugins[i]; p.Socket != "" && p.Socket != c.Socket {
				return "", fmt.Errorf("%s names the socket %s, and the agent's is %s; correct it there", filepath.Join(c.ConfDir, name), p.Socket, c.Socket)
			}
			return name, nil
		}
	}
	return "", nil
}

// first reports a file that the runtime uses instead of ours. A plugin that calls those of
// other files comes first on purpose.
func (c Config) first(names []string, at string) error {
	if len(names) == 0 || names[0] >= at {
		return nil
	}
	path := filepath.Join(c.ConfDir, names[0])
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	_, _, plugins, err := pluginsOf(text)
	if err == nil && slices.ContainsFunc(plugins, callsOthers) {
		return nil
	}
	return fmt.Errorf("a container runtime uses %s, because it comes before %s; remove it if the network is Weft's", path, at)
}

// Other is a network configuration without our plugin.
type Other struct {
	File string
	// Types are those of its plugins, for people.
	Types string
	// First says that a runtime uses it instead of ours, and Calls that it calls other files'
	// plugins on purpose.
	First, Calls bool
}

// Others lists the network configurations in a folder that are not ours.
func Others(dir string) (out []Other, err error) {
	if _, err := os.Stat(dir); err != nil {
		return nil, err
	}
	names, err := Config{ConfDir: dir}.files()
	if err != nil {
		return nil, err
	}
	own := false
	for _, name := range names {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		o := Other{File: name, First: !own, Types: "not readable"}
		if _, _, plugins, err := pluginsOf(text); err == nil {
			if slices.ContainsFunc(plugins, ours) {
				own = true
				continue
			}
			var types []string
			for _, p := range plugins {
				types = append(types, p.Type)
			}
			o.Types, o.Calls = strings.Join(types, ", "), slices.ContainsFunc(plugins, callsOthers)
		}
		out = append(out, o)
	}
	return out, nil
}

// callsOthers reports whether a plugin calls those of other files.
func callsOthers(p plugin) bool { return strings.HasPrefix(p.Type, "multus") }

// files are the configurations in the folder, in the order in which a runtime looks.
func (c Config) files() (names []string, err error) {
	all, err := os.ReadDir(c.ConfDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, f := range all {
		if !f.IsDir() && slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(f.Name())) {
			names = append(names, f.Name())
		}
	}
	return names, nil
}

// InstallProgram copies the plugin's program, unless it is there. A runtime that starts it
// meanwhile finds the one of before or this one.
func (c Config) InstallProgram() error {
	path := filepath.Join(c.BinDir, Type)
	same, err := sameContent(c.Program, path)
	if err != nil {
		return err
	}
	if same {
		return c.InstallLoopback()
	}
	if err := os.MkdirAll(c.BinDir, 0o755); err != nil {
		return err
	}
	from, err := os.Open(c.Program)
	if err != nil {
		return err
	}
	defer from.Close()
	if err := statefile.Create(path, func(f *os.File) error {
		if _, err := io.Copy(f, from); err != nil {
			return err
		}
		return f.Chmod(0o755)
	}); err != nil {
		return err
	}
	return c.InstallLoopback()
}

// InstallLoopback has our program stand in for the plugin loopback, unless somebody's is there.
func (c Config) InstallLoopback() error {
	path := filepath.Join(c.BinDir, loopback)
	if _, err := os.Lstat(path); err == nil {
		return nil
	}
	err := os.Symlink(Type, path)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

// sameContent says whether a program is another's copy that can be run.
func sameContent(program, other string) (bool, error) {
	a, err := os.Open(program)
	if err != nil {
		return false, err
	}
	defer a.Close()
	b, err := os.Open(other)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer b.Close()
	was, err := a.Stat()
	if err != nil {
		return false, err
	}
	is, err := b.Stat()
	if err != nil {
		return false, err
	}
	if os.SameFile(was, is) {
		return true, nil
	}
	if was.Size() != is.Size() || is.Mode().Perm() != 0o755 {
		return false, nil
	}
	const block = 1 << 20
	mine, its := make([]byte, block), make([]byte, block)
	for {
		n, err := io.ReadFull(a, mine)
		m, other := io.ReadFull(b, its)
		ended := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		switch {
		case err != nil && !ended:
			return false, err
		case n != m || !bytes.Equal(mine[:n], its[:m]):
			return false, nil
		case ended:
			return true, nil
		case other != nil:
			return false, other
		}
	}
}

// Uninstall removes the configuration and the program. It refuses while others have plugins
// in it: without ours in front of them, theirs cannot work.
func (c Config) Uninstall() error {
	path := filepath.Join(c.ConfDir, File)
	text, err := os.ReadFile(path)
	if err == nil {
		_, _, plugins, bad := pluginsOf(text)
		if bad != nil {
			return fmt.Errorf("%s cannot be read: %w; look at it and delete it", path, bad)
		}
		var others []string
		for _, p := range plugins {
			if !ours(p) {
				others = append(others, p.Type)
			}
		}
		if len(others) > 0 {
			return fmt.Errorf("%s has plugins of others: %s; uninstall those first, or delete the file", path, strings.Join(others, ", "))
		}
		err = os.Remove(path)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if to, err := os.Readlink(filepath.Join(c.BinDir, loopback)); err == nil && to == Type {
		if err := os.Remove(filepath.Join(c.BinDir, loopback)); err != nil {
			return err
		}
	}
	if err := os.Remove(filepath.Join(c.BinDir, Type)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
