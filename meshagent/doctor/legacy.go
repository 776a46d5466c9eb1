package doctor

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// legacy are the rules of iptables before nftables. They are read and replaced by its own
// programs, and only tables that are in use: to look at another would create it.
type legacy struct{}

var legacyTools = map[string]struct{ names, save, restore string }{
	"ip":  {"/proc/self/net/ip_tables_names", "iptables-legacy-save", "iptables-legacy-restore"},
	"ip6": {"/proc/self/net/ip6_tables_names", "ip6tables-legacy-save", "ip6tables-legacy-restore"},
}

// Read implements Rules.
func (legacy) Read() (out []Table, err error) {
	for _, family := range []string{"ip", "ip6"} {
		tools := legacyTools[family]
		names, err := os.ReadFile(tools.names)
		if err != nil {
			continue // there are none
		}
		for _, name := range strings.Fields(string(names)) {
			text, err := exec.Command(tools.save, "-t", name).Output()
			if errors.Is(err, exec.ErrNotFound) {
				return nil, fmt.Errorf("table %s is in use, but %s is not installed here: run `weft doctor` on the node itself, or look with `iptables-legacy-save`", name, tools.save)
			}
			if err != nil {
				return nil, fmt.Errorf("%s: %w", tools.save, err)
			}
			out = append(out, parseSaved(family, name, string(text)))
		}
	}
	return out, nil
}

// parseSaved reads what iptables-save has written of a table. A rule's handle is its line.
func parseSaved(family, name, text string) Table {
	t := Table{Family: family, Name: name}
	at := map[string]int{}
	n := uint64(0)
	for line := range strings.Lines(text) {
		n++
		w := strings.Fields(line)
		if len(w) > 1 && strings.HasPrefix(w[0], ":") {
			at[w[0][1:]] = len(t.Chains)
			t.Chains = append(t.Chains, Chain{Name: w[0][1:]})
			continue
		}
		if i, ok := ruleIn(w, at); ok {
			rule := Rule{Handle: n}
			if to := target(w); to != "" {
				rule.Jumps = []string{to}
			}
			t.Chains[i].Rules = append(t.Chains[i].Rules, rule)
		}
	}
	return t
}

// ruleIn is the place of the chain that a line's rule is in. Counters may come first.
func ruleIn(words []string, at map[string]int) (int, bool) {
	for i, w := range words {
		if w == "-A" && i+1 < len(words) && (i == 0 || strings.HasPrefix(words[0], "[")) {
			n, ok := at[words[i+1]]
			return n, ok
		}
	}
	return 0, false
}

// target is where a rule leads. A comment may have words like any other.
func target(words []string) string {
	quoted := false
	for i, w := range words {
		if !quoted && (w == "-j" || w == "-g") && i+1 < len(words) {
			return words[i+1]
		}
		if strings.Count(strings.ReplaceAll(w, `\"`, ""), `"`)%2 == 1 {
			quoted = !quoted
		}
	}
	return ""
}

// Remove implements Rules. Each table is replaced at once, with its counters.
func (legacy) Remove(p Plan) error {
	of := map[TableName]Plan{}
	for _, c := range p.Chains {
		part := of[c.TableName]
		part.Chains = append(part.Chains, c)
		of[c.TableName] = part
	}
	for _, r := range p.Rules {
		part := of[r.TableName]
		part.Rules = append(part.Rules, r)
		of[r.TableName] = part
	}
	var errs []error
	for t, part := range of {
		tools := legacyTools[t.Family]
		text, err := exec.Command(tools.save, "-c", "-t", t.Name).Output()
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", tools.save, err))
			continue
		}
		cmd := exec.Command(tools.restore, "-c", "-T", t.Name)
		cmd.Stdin = strings.NewReader(without(string(text), part))
		var said bytes.Buffer
		cmd.Stderr = &said
		if err := cmd.Run(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w: %s", tools.restore, err, strings.TrimSpace(said.String())))
		}
	}
	return errors.Join(errs...)
}

// without leaves out of a saved table the chains that go, their rules, and those that lead
// there.
func without(text string, p Plan) string {
	gone := map[string]bool{}
	for _, c := range p.Chains {
		gone[c.Chain] = true
	}
	var b strings.Builder
	for line := range strings.Lines(text) {
		w := strings.Fields(line)
		if len(w) > 1 && strings.HasPrefix(w[0], ":") && gone[w[0][1:]] {
			continue
		}
		at := map[string]int{}
		for c := range gone {
			at[c] = 0
		}
		if _, in := ruleIn(w, at); in || gone[target(w)] {
			continue
		}
		b.WriteString(line)
	}
	return b.String()
}
