package api

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/statefile"
)

// AdminConfigPath is the file that an API server writes the first operator's context to.
const AdminConfigPath = "/etc/weft/admin.conf"

// Config is a file of contexts. It contains private keys, so its mode is 0600.
type Config struct {
	// Current names the default context. It may be empty if there is only one.
	Current  string    `json:"current,omitempty"`
	Contexts []Context `json:"contexts"`
}

// Context is one cluster and the operator's identity in it.
type Context struct {
	Name   string `json:"name"`
	Server string `json:"server"` // https://host:port
	// Servers are the cluster's other API servers. They are asked where Server cannot
	// be reached.
	Servers []string `json:"servers,omitempty"`
	CA      string   `json:"ca"`   // PEM, one or more certificates
	Cert    string   `json:"cert"` // PEM
	Key     string   `json:"key"`  // PEM
}

// Equal reports whether two contexts are the same.
func (x Context) Equal(y Context) bool {
	return x.Name == y.Name && x.Server == y.Server && slices.Equal(x.Servers, y.Servers) && x.CA == y.CA && x.Cert == y.Cert && x.Key == y.Key
}

// String hides what is secret.
func (x Context) String() string { return "context " + x.Name }

// GoString hides what is secret.
func (x Context) GoString() string { return x.String() }

// ConfigPath is the default file of contexts: $WEFT_CONFIG if set, else
// ~/.config/weft/config if it exists, else /etc/weft/admin.conf.
func ConfigPath() string {
	if path := os.Getenv("WEFT_CONFIG"); path != "" {
		return path
	}
	if home, err := os.UserHomeDir(); err == nil {
		path := filepath.Join(home, ".config", "weft", "config")
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return AdminConfigPath
}

// ConfigSyntax is the error for a file that cannot be parsed as contexts.
type ConfigSyntax struct {
	Path string
	Err  error
}

func (e *ConfigSyntax) Error() string { return "contexts file " + e.Path + ": " + e.Err.Error() }

// Unwrap returns what is wrong with the file.
func (e *ConfigSyntax) Unwrap() error { return e.Err }

// LoadConfig reads a file of contexts; an empty path means ConfigPath.
// Unknown fields are refused with ConfigSyntax.
func LoadConfig(path string) (*Config, error) {
	if path == "" {
		path = ConfigPath()
	}
	text, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("no contexts at %s: copy the admin.conf that the API server wrote at its first start, or set WEFT_CONFIG to another file: %w", path, err)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("you may not read the contexts at %s: copy them to ~/.config/weft/config, or set WEFT_CONFIG to another file: %w", path, err)
	case err != nil:
		return nil, fmt.Errorf("read contexts: %w", err)
	}
	var c Config
	if err := yaml.UnmarshalStrict(text, &c); err != nil {
		return nil, &ConfigSyntax{Path: path, Err: err}
	}
	for i, x := range c.Contexts {
		if x.Name == "" || x.Server == "" {
			return nil, fmt.Errorf("contexts file %s: context %d needs a name and a server", path, i+1)
		}
	}
	return &c, nil
}

// Names returns the names of the contexts in file order.
func (c *Config) Names() []string {
	names := make([]string, len(c.Contexts))
	for i, x := range c.Contexts {
		names[i] = x.Name
	}
	return names
}

// Context finds a context by name. An empty name means Current, or the only context.
func (c *Config) Context(name string) (Context, error) {
	if name == "" {
		name = c.Current
	}
	if name == "" && len(c.Contexts) == 1 {
		return c.Contexts[0], nil
	}
	if len(c.Contexts) == 0 {
		return Context{}, errors.New("the contexts file has no contexts: add an API server's admin.conf with weft config merge")
	}
	if name == "" {
		return Context{}, fmt.Errorf("there are %d contexts (%s): choose one with -c, or -c all", len(c.Contexts), strings.Join(c.Names(), ", "))
	}
	i := slices.IndexFunc(c.Contexts, func(x Context) bool { return x.Name == name })
	if i < 0 {
		return Context{}, fmt.Errorf("no context %q: choose from %s", name, strings.Join(c.Names(), ", "))
	}
	return c.Contexts[i], nil
}

// Set adds a context, or replaces the one of the same name.
func (c *Config) Set(x Context) {
	if i := slices.IndexFunc(c.Contexts, func(y Context) bool { return y.Name == x.Name }); i >= 0 {
		c.Contexts[i] = x
		return
	}
	c.Contexts = append(c.Contexts, x)
}

// Save replaces the file atomically, with mode 0600.
func (c *Config) Save(path string) error {
	text, err := yaml.Marshal(c)
	if err != nil {
		return fmt.Errorf("encode contexts: %w", err)
	}
	return WriteSecretFile(path, text)
}

// WriteSecretFile replaces a file atomically, as statefile.Write does, with mode 0600. A
// file that already has this content is left alone.
func WriteSecretFile(path string, text []byte) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, text) {
		return os.Chmod(path, 0o600)
	}
	return statefile.Write(path, text)
}
