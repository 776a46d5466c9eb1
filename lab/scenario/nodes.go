package scenario

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/weft-mesh/weft/lab"
)

func pattern(text string) (*regexp.Regexp, error) { return regexp.Compile("(?m)" + text) }

// refs resolves several patterns of processes.
func (v *Live) refs(args []string) (refs []lab.Ref, err error) {
	if len(args) == 0 {
		return nil, usageError{}
	}
	for _, arg := range args {
		more, err := v.Lab.Refs(arg)
		if err != nil {
			return nil, err
		}
		refs = append(refs, more...)
	}
	return refs, nil
}

func (v *Live) kill(_ context.Context, args []string) error {
	var processes []string
	var pods []lab.Pod
	for _, arg := range args {
		if strings.Contains(arg, "@") {
			processes = append(processes, arg)
			continue
		}
		pod, err := v.Lab.Pod(arg)
		if err != nil {
			return err
		}
		pods = append(pods, pod)
	}
	v.fault()
	for _, pod := range pods {
		if err := v.Lab.KillPod(pod); err != nil {
			return err
		}
	}
	if len(pods) > 0 && len(processes) == 0 {
		return nil
	}
	refs, err := v.refs(processes)
	if err != nil {
		return err
	}
	return lab.Kill(refs)
}

func (v *Live) processes(args []string, do func([]lab.Ref) error) error {
	refs, err := v.refs(args)
	if err != nil {
		return err
	}
	v.fault()
	return do(refs)
}

func (v *Live) stop(_ context.Context, args []string) error  { return v.processes(args, lab.Stop) }
func (v *Live) start(_ context.Context, args []string) error { return v.processes(args, lab.Start) }
func (v *Live) restart(_ context.Context, args []string) error {
	return v.processes(args, lab.Restart)
}

func (v *Live) version(_ context.Context, args []string) error {
	if len(args) < 2 || args[0] != "first" && args[0] != "next" {
		return usageError{}
	}
	refs, err := v.refs(args[1:])
	if err != nil {
		return err
	}
	return v.Lab.Upgrade(refs, args[0] == "next")
}

func (v *Live) ended(_ context.Context, args []string) error {
	var processes []string
	for _, arg := range args {
		task := v.daemons[arg]
		if task == nil {
			processes = append(processes, arg)
			continue
		}
		if task.Running() {
			return fmt.Errorf("%s is still running", arg)
		}
		if err := task.Err(); err != nil {
			return misuse("%s ended with %w: %s", arg, err, task.Log())
		}
	}
	if len(processes) == 0 && len(args) > 0 {
		return nil
	}
	refs, err := v.refs(processes)
	if err != nil {
		return err
	}
	return lab.Ended(refs)
}

func (v *Live) nodes(args []string) (nodes []*lab.Node, err error) {
	for _, arg := range args {
		n, err := v.Lab.Node(arg)
		if err != nil {
			return nil, err
		}
		nodes = append(nodes, n)
	}
	return nodes, nil
}

func (v *Live) power(_ context.Context, args []string) error {
	if len(args) < 2 || args[0] != "off" && args[0] != "on" {
		return usageError{}
	}
	nodes, err := v.nodes(args[1:])
	if err != nil {
		return err
	}
	if slices.Contains(nodes, v.Lab.Operator) {
		return misuse("the operator's machine keeps its power: name a node")
	}
	if err := v.Lab.Failures(); err != nil { // which a power loss would hide
		return err
	}
	v.fault()
	var g errgroup.Group
	for _, n := range nodes {
		g.Go(func() error {
			if args[0] == "off" {
				return n.PowerOff()
			}
			return errors.Join(n.PowerOn(), v.Lab.BootNode(n))
		})
	}
	return g.Wait()
}

func (v *Live) disk(_ context.Context, args []string) error {
	if len(args) != 2 {
		return usageError{}
	}
	n, err := v.Lab.Node(args[1])
	if err != nil {
		return err
	}
	switch args[0] {
	case "fill":
		v.fault()
		return n.FillDisk()
	case "free":
		return n.FreeDisk()
	}
	return usageError{}
}

func (v *Live) put(_ context.Context, args []string) error {
	if len(args) != 3 || !filepath.IsAbs(args[2]) {
		return usageError{}
	}
	n, err := v.Lab.Node(args[1])
	if err != nil {
		return err
	}
	text, err := os.ReadFile(v.state.Path(args[0]))
	if err != nil {
		return err
	}
	return os.WriteFile(n.Path(args[2]), text, 0o600)
}

func (v *Live) metrics(ctx context.Context, args []string) error {
	refs, err := v.refs(args)
	if err != nil {
		return err
	}
	var text bytes.Buffer
	for _, r := range refs {
		one, err := lab.Metrics(ctx, r)
		if err != nil {
			return err
		}
		text.Write(one)
	}
	v.keep(&text, &bytes.Buffer{})
	return nil
}

// memory sets PREFIX_PROCESS_mib to the current resident size of the largest such
// process.
func (v *Live) memory(_ context.Context, args []string) error {
	if len(args) != 1 {
		return usageError{}
	}
	largest := map[string]float64{}
	for _, n := range v.Lab.Nodes() {
		for name, size := range n.Memory() {
			if !strings.Contains(name, "/") {
				largest[name] = max(largest[name], float64(size)/(1<<20))
			}
		}
	}
	for name, size := range largest {
		v.Figures.Set(fmt.Sprintf("%s_%s_mib", args[0], name), size)
	}
	return nil
}
