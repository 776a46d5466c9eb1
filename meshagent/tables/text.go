package tables

import (
	"net/netip"
	"strings"
	"time"
)

// How cells are written. No row contains secrets.

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func or(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func list(s []string) string { return or(strings.Join(s, ",")) }

func addr(a netip.Addr) string {
	if !a.IsValid() {
		return "-"
	}
	return a.String()
}

func addrs(all []netip.Addr) string {
	var out []string
	for _, a := range all {
		out = append(out, a.String())
	}
	return list(out)
}

func prefixes(all []netip.Prefix) string {
	var out []string
	for _, p := range all {
		out = append(out, p.String())
	}
	return list(out)
}

// show formats a prefix, without the length if it is a single address.
func show(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

func pod(namespace, name string) string {
	if name == "" {
		return "-"
	}
	return namespace + "/" + name
}

func short(key string) string {
	if len(key) < 8 {
		return or(key)
	}
	return key[:8]
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.RFC3339)
}
