package doctor

import (
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// nft are the rules of nftables, to which those of today's iptables belong.
type nft struct{}

var families = map[nftables.TableFamily]string{
	nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyINet: "inet",
	nftables.TableFamilyBridge: "bridge", nftables.TableFamilyARP: "arp", nftables.TableFamilyNetdev: "netdev",
}

// Read implements Rules.
func (nft) Read() (out []Table, err error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, err
	}
	tables, err := conn.ListTables()
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, nil // this kernel has no nftables
	}
	if err != nil {
		return nil, err
	}
	chains, err := conn.ListChains()
	if err != nil {
		return nil, err
	}
	for _, t := range tables {
		table := Table{Family: families[t.Family], Name: t.Name}
		known := ownerOfTable(t.Name) != ""
		for _, c := range chains {
			if c.Table.Name != t.Name || c.Table.Family != t.Family || known {
				continue
			}
			chain := Chain{Name: c.Name}
			rules, err := conn.GetRules(t, c)
			if err != nil && !errors.Is(err, unix.ENOENT) {
				return nil, fmt.Errorf("read chain %s of table %s: %w", c.Name, t.Name, err)
			}
			for _, r := range rules {
				rule := Rule{Handle: r.Handle}
				for _, e := range r.Exprs {
					if v, ok := e.(*expr.Verdict); ok && v.Chain != "" {
						rule.Jumps = append(rule.Jumps, v.Chain)
					}
				}
				chain.Rules = append(chain.Rules, rule)
			}
			table.Chains = append(table.Chains, chain)
		}
		out = append(out, table)
	}
	return out, nil
}

// Remove implements Rules, in one transaction.
func (nft) Remove(p Plan) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	table := func(n TableName) *nftables.Table {
		for family, name := range families {
			if name == n.Family {
				return &nftables.Table{Name: n.Name, Family: family}
			}
		}
		return nil
	}
	for _, r := range p.Rules {
		t := table(r.TableName)
		if err := conn.DelRule(&nftables.Rule{Table: t, Chain: &nftables.Chain{Name: r.Chain, Table: t}, Handle: r.Handle}); err != nil {
			return err
		}
	}
	// They lead to each other: all are emptied before any goes.
	var chains []*nftables.Chain
	for _, c := range p.Chains {
		chain := &nftables.Chain{Name: c.Chain, Table: table(c.TableName)}
		conn.FlushChain(chain)
		chains = append(chains, chain)
	}
	for _, c := range chains {
		conn.DelChain(c)
	}
	for _, t := range p.Tables {
		conn.DelTable(table(t))
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("change nftables: %w", err)
	}
	return nil
}
