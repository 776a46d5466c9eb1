package flow

import (
	"errors"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/weft-mesh/weft/bpf"
	"github.com/weft-mesh/weft/identity"
)

// fields are all filters. texts returns whatever parse accepted.
var fields = func() []field {
	all := []field{
		list("verdict", "FORWARDED, DROPPED, RESET or REFUSED", parseVerdict, func(f *Filter) *[]Verdict { return &f.Verdicts }),
		list("reason", "why a packet was dropped, for example policy-denied", parseReason, func(f *Filter) *[]string { return &f.Reasons }),
		list("direction", "EGRESS or INGRESS, seen from the pod", parseDirection, func(f *Filter) *[]Direction { return &f.Directions }),
		list("protocol", "TCP, UDP, ICMP, SCTP", parseProtocol, func(f *Filter) *[]string { return &f.Protocols }),
		list("node", "node that saw it, as node or cluster/node; * matches", parseGlob, func(f *Filter) *[]string { return &f.Nodes }),
		list("policy", "policy that decided, as name or namespace/name", nonEmpty, func(f *Filter) *[]string { return &f.Policies }),
		list("service", "service that was addressed, as name or namespace/name", nonEmpty, func(f *Filter) *[]string { return &f.Services }),
		moment("since", "not before: a time (RFC 3339) or how long ago (5m)", func(f *Filter) *time.Time { return &f.Since }),
		moment("until", "before: a time (RFC 3339) or how long ago (5m)", func(f *Filter) *time.Time { return &f.Until }),
	}
	all = append(all, endFields("", "either side", func(f *Filter) *End { return &f.Either })...)
	all = append(all, endFields("from-", "the source", func(f *Filter) *End { return &f.From })...)
	return append(all, endFields("to-", "the destination", func(f *Filter) *End { return &f.To })...)
}()

func endFields(prefix, side string, of func(*Filter) *End) []field {
	return []field{
		list(prefix+"pod", "pod of "+side+": [[cluster/]namespace/]beginning-of-name", parsePod, func(f *Filter) *[]string { return &of(f).Pods }),
		list(prefix+"cluster", "cluster of "+side+"; * matches", parseGlob, func(f *Filter) *[]string { return &of(f).Clusters }),
		list(prefix+"namespace", "namespace of "+side, nonEmpty, func(f *Filter) *[]string { return &of(f).Namespaces }),
		list(prefix+"identity", "identity of "+side+", as number or reserved name", identity.ParseNumber, func(f *Filter) *[]identity.Number { return &of(f).Identities }),
		list(prefix+"ip", "address or prefix of "+side, parsePrefix, func(f *Filter) *[]netip.Prefix { return &of(f).Addresses }),
		list(prefix+"port", "port of "+side, parsePort, func(f *Filter) *[]uint16 { return &of(f).Ports }),
		list(prefix+"label", "label of "+side+": key or key=value", nonEmpty, func(f *Filter) *[]string { return &of(f).Labels }),
	}
}

// list makes the field of a list of values.
func list[T any](name, usage string, parse func(string) (T, error), of func(*Filter) *[]T) field {
	return field{name: name, usage: usage,
		parse: func(f *Filter, s string) error {
			v, err := parse(s)
			if err != nil {
				return err
			}
			*of(f) = append(*of(f), v)
			return nil
		},
		texts: func(f *Filter) (texts []string) {
			for _, v := range *of(f) {
				texts = append(texts, fmt.Sprint(v))
			}
			return texts
		},
	}
}

// moment makes the field of a time. The last value given counts.
func moment(name, usage string, of func(*Filter) *time.Time) field {
	return field{name: name, usage: usage,
		parse: func(f *Filter, s string) error {
			t, err := parseTime(s)
			*of(f) = t
			return err
		},
		texts: func(f *Filter) []string {
			if of(f).IsZero() {
				return nil
			}
			return []string{of(f).Format(time.RFC3339Nano)}
		},
	}
}

func parseTime(s string) (time.Time, error) {
	if ago, err := time.ParseDuration(s); err == nil && ago >= 0 {
		return time.Now().Add(-ago).UTC(), nil
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if t = t.UTC(); err != nil || t.Year() < 1 || t.Year() > 9999 || t.IsZero() {
		return time.Time{}, fmt.Errorf("%q is neither a duration such as 5m nor a time such as 2026-01-02T15:04:05Z", s)
	}
	return t, nil
}

func parseVerdict(s string) (Verdict, error) {
	switch v := Verdict(strings.ToUpper(s)); v {
	case Forwarded, Dropped, Reset, Refused:
		return v, nil
	}
	return "", fmt.Errorf("there is no verdict %q; choose FORWARDED, DROPPED, RESET or REFUSED", s)
}

func parseReason(s string) (string, error) {
	reasons := Reasons()
	if low := strings.ToLower(s); slices.Contains(reasons, low) {
		return low, nil
	}
	return "", fmt.Errorf("there is no reason %q; choose from %s", s, strings.Join(reasons, ", "))
}

// Reasons returns all reasons that a flow can have, sorted.
func Reasons() (names []string) {
	for _, r := range bpf.DropReasons() {
		names = append(names, r.String())
	}
	slices.Sort(names)
	return names
}

func parseDirection(s string) (Direction, error) {
	switch d := Direction(strings.ToUpper(s)); d {
	case Egress, Ingress:
		return d, nil
	}
	return "", fmt.Errorf("there is no direction %q; choose EGRESS or INGRESS", s)
}

func parseProtocol(s string) (string, error) {
	up := strings.ToUpper(s)
	for _, name := range protocols {
		if name == up {
			return up, nil
		}
	}
	if n, err := strconv.ParseUint(s, 10, 8); err == nil {
		return ProtocolName(uint8(n)), nil
	}
	return "", fmt.Errorf("there is no protocol %q; choose TCP, UDP, ICMP, ICMPV6, SCTP or a number", s)
}

func parseGlob(s string) (string, error) {
	if _, err := path.Match(s, ""); err != nil {
		return "", fmt.Errorf("%q is not a pattern: %w", s, err)
	}
	return nonEmpty(s)
}

func parsePod(s string) (string, error) {
	if strings.Count(s, "/") > 2 {
		return "", fmt.Errorf("%q has too many parts; write [[cluster/]namespace/]pod", s)
	}
	return nonEmpty(s)
}

func nonEmpty(s string) (string, error) {
	if s == "" {
		return "", errors.New("the value is empty; leave the filter out to match everything")
	}
	return s, nil
}

func parsePrefix(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		return netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil || p.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("%q is neither an address nor a prefix such as 10.1.0.0/16", s)
	}
	return p.Masked(), nil
}

// protocols are the names the filters and the reports use.
var protocols = map[uint8]string{1: "ICMP", 6: "TCP", 17: "UDP", 58: "ICMPV6", 132: "SCTP"}

// ProtocolName returns a protocol's name, or its number if it has no name here.
func ProtocolName(n uint8) string {
	if name, ok := protocols[n]; ok {
		return name
	}
	return strconv.Itoa(int(n))
}
