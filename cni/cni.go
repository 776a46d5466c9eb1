// Package cni is the plugin that a container runtime runs for each pod, by version 1.1 of the
// Container Network Interface: it asks the node's agent for the pod's network.
//
// It remembers nothing and touches no device: addresses, devices and what was given to whom
// are the agent's. While no agent answers, it leaves removals in a folder where the agent
// finds them.
package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"

	"github.com/weft-mesh/weft/api"
)

// Program is a name under which the program is the plugin whatever its environment says.
const Program = "weft-cni"

// Called says whether a runtime has started this process as its plugin: runtimes give no
// arguments.
func Called(args []string, getenv func(string) string) bool {
	return len(args) > 0 && filepath.Base(args[0]) == Program || len(args) == 1 && getenv("CNI_COMMAND") != ""
}

// Main is the plugin as a process. It returns the exit code.
func Main() int {
	return Call{Getenv: os.Getenv, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}.Run(context.Background())
}

// Call is one call of the plugin.
type Call struct {
	Getenv         func(string) string
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// How long each command waits for the agent. A runtime gives up after minutes and asks again;
// one that asks for the status does so every few seconds.
const (
	addPatience    = 30 * time.Second
	delPatience    = 15 * time.Second
	statusPatience = 4 * time.Second
	gcPatience     = time.Minute
)

// identityPatience is how long a pod waits for its identity before it starts: until then
// none of its packets pass, which is safe, but not what a starting program expects.
const identityPatience = 2 * time.Second

// versions of the interface that the plugin speaks, oldest first.
var versions = []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"}

// command is one of a runtime's commands.
type command struct {
	// since is the version of the interface that has it.
	since string
	// needs are the variables without which it means nothing.
	needs []string
	do    func(context.Context, request) (any, error)
}

var commands = map[string]command{
	"ADD":    {"0.3.1", []string{"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"}, add},
	"DEL":    {"0.3.1", []string{"CNI_CONTAINERID", "CNI_IFNAME"}, del},
	"CHECK":  {"0.4.0", []string{"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"}, check},
	"GC":     {"1.1.0", nil, collect},
	"STATUS": {"1.1.0", nil, status},
}

// request is what a runtime asks for.
type request struct {
	config
	container, netns, device string
	args                     string
	// override lets the pod's network namespace be the plugin's own, as runtimes that have
	// one for all pods ask for.
	override bool
}

// Run does what the runtime asks for and returns what to exit with.
func (c Call) Run(ctx context.Context) int {
	if c.Getenv("CNI_COMMAND") == "" {
		fmt.Fprintf(c.Stderr, "Weft's CNI plugin, for versions %s of the interface. A container runtime calls it; install it with `weft cni install`.\n", strings.Join(versions, ", "))
		return 0
	}
	spoken, answer, err := c.run(ctx)
	if err != nil {
		answer = failureOf(err, spoken)
	}
	if answer != nil {
		text, encoding := json.MarshalIndent(answer, "", "    ")
		if encoding == nil {
			_, encoding = c.Stdout.Write(append(text, '\n'))
		}
		if encoding != nil {
			fmt.Fprintln(c.Stderr, "weft:", encoding)
			return 1
		}
	}
	if err != nil {
		return 1
	}
	return 0
}

// run returns the version that the runtime speaks, and what to answer; nil: nothing.
func (c Call) run(ctx context.Context) (spoken string, answer any, err error) {
	name := c.Getenv("CNI_COMMAND")
	if name == "VERSION" {
		return "", supported{version.Current(), versions}, nil
	}
	text, err := io.ReadAll(io.LimitReader(c.Stdin, maxConfig+1))
	if err != nil {
		return "", nil, types.NewError(types.ErrIOFailure, "the network's configuration cannot be read", err.Error())
	}
	conf, err := readConfig(text)
	if err != nil {
		return conf.CNIVersion, nil, err
	}
	do, ok := commands[name]
	if !ok {
		return conf.CNIVersion, nil, types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("CNI_COMMAND %q is not a command of the interface", name),
			"use ADD, DEL, CHECK, GC, STATUS or VERSION")
	}
	if newer, err := version.GreaterThanOrEqualTo(conf.CNIVersion, do.since); err != nil || !newer {
		return conf.CNIVersion, nil, types.NewError(types.ErrIncompatibleCNIVersion, fmt.Sprintf("version %s of the interface does not have %s", conf.CNIVersion, name),
			"use version "+do.since+" or newer as the configuration's cniVersion")
	}
	r := request{
		config: conf, container: c.Getenv("CNI_CONTAINERID"), netns: c.Getenv("CNI_NETNS"), device: c.Getenv("CNI_IFNAME"), args: c.Getenv("CNI_ARGS"),
		override: slices.Contains([]string{"TRUE", "1"}, strings.ToUpper(c.Getenv("CNI_NETNS_OVERRIDE"))),
	}
	if err := c.validate(do.needs); err != nil {
		return conf.CNIVersion, nil, err
	}
	if conf.Type == Loopback {
		answer, err = loopback(ctx, name, r)
	} else {
		answer, err = do.do(ctx, r)
	}
	return conf.CNIVersion, answer, err
}

// validate checks the variables of a command.
func (c Call) validate(needs []string) error {
	var missing []string
	for _, name := range needs {
		if c.Getenv(name) == "" {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		return types.NewError(types.ErrInvalidEnvironmentVariables, "the environment lacks "+strings.Join(missing, ", "), "a container runtime sets it; a person uses cnitool")
	}
	if len(needs) == 0 {
		return nil
	}
	if err := utils.ValidateContainerID(c.Getenv("CNI_CONTAINERID")); err != nil {
		return err
	}
	if err := utils.ValidateInterfaceName(c.Getenv("CNI_IFNAME")); err != nil {
		return err
	}
	return nil
}

// supported answers VERSION.
type supported struct {
	CNIVersion string   `json:"cniVersion"`
	Versions   []string `json:"supportedVersions"`
}

// failure is an error as the interface has it.
type failure struct {
	CNIVersion string `json:"cniVersion"`
	Code       uint   `json:"code"`
	Message    string `json:"msg"`
	Details    string `json:"details,omitempty"`
}

func failureOf(err error, spoken string) failure {
	out := failure{CNIVersion: spoken, Code: types.ErrInternal, Message: err.Error()}
	if spoken == "" {
		out.CNIVersion = version.Current()
	}
	var known *types.Error
	if errors.As(err, &known) {
		out.Code, out.Message, out.Details = known.Code, known.Msg, known.Details
	}
	return out
}

// errAway says that no agent has answered: what was asked for may have been done, or may not.
var errAway = errors.New("the agent does not answer")

// codeDamaged is our own code: CHECK found a network that is not as ADD made it.
const codeDamaged = 100

// ask has a request answered by the agent. The error is errAway if there is no answer, and a
// *types.Error otherwise.
func ask(ctx context.Context, socket string, patience time.Duration, f func(context.Context, *api.Client) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	agent := api.NewUnixClient(socket)
	defer agent.Close()
	err := f(ctx, agent)
	var refused *api.Error
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &refused):
		return fmt.Errorf("%w at %s: %w", errAway, socket, err)
	case refused.Status >= 500, refused.Status == 429:
		hint := refused.Hint
		if hint == "" {
			hint = "the runtime tries again; `weft status` says more if this lasts"
		}
		return refusal{types.NewError(types.ErrTryAgainLater, refused.Error(), hint), refused.Status}
	}
	return refusal{types.NewError(types.ErrInvalidNetworkConfig, refused.Error(), refused.Hint), refused.Status}
}

// refusal is what the agent answered.
type refusal struct {
	is     *types.Error
	status int
}

func (r refusal) Error() string { return r.is.Error() }
func (r refusal) Unwrap() error { return r.is }

// tryLater is the error of a command that needs an agent.
func tryLater(err error) error {
	if !errors.Is(err, errAway) {
		return err
	}
	return types.NewError(types.ErrTryAgainLater, err.Error(), agentHint)
}

const agentHint = "is `weft agent` running on this node? The runtime tries again"

// namespace checks the pod's network namespace.
func (r request) namespace() error {
	wrong := func(what string) error {
		return types.NewError(types.ErrInvalidNetNS, what, "give the pod a network namespace of its own, and its file as CNI_NETNS")
	}
	var fs unix.Statfs_t
	if !filepath.IsAbs(r.netns) || unix.Statfs(r.netns, &fs) != nil || fs.Type != unix.NSFS_MAGIC {
		return wrong(fmt.Sprintf("CNI_NETNS %q is not a network namespace", r.netns))
	}
	its, err := os.Stat(r.netns)
	if err != nil {
		return wrong(err.Error())
	}
	if own, err := os.Stat("/proc/thread-self/ns/net"); !r.override && err == nil && os.SameFile(own, its) {
		return wrong("CNI_NETNS is the node's own network namespace")
	}
	return nil
}

func add(ctx context.Context, r request) (any, error) {
	if len(r.PrevResult) > 0 {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, "another plugin comes before weft, which makes the pod's device itself", "put weft first in the list of plugins")
	}
	if err := r.strict(); err != nil {
		return nil, err
	}
	req, err := r.forAgent()
	if err == nil {
		req.Addresses, err = r.addresses()
	}
	if err == nil {
		err = r.namespace()
	}
	if err != nil {
		return nil, err
	}
	req.Netns = filepath.Clean(r.netns)
	req.WaitSeconds = identityPatience.Seconds()
	var got *api.EndpointResult
	err = ask(ctx, r.Socket, addPatience, func(ctx context.Context, agent *api.Client) error {
		got, err = agent.Endpoints().Add(ctx, req)
		return err
	})
	if err != nil {
		return nil, tryLater(err)
	}
	return r.result(got)
}

// del succeeds without an agent too, which finds the removal when it starts. What the agent
// cannot have given is gone as well.
func del(ctx context.Context, r request) (any, error) {
	req, err := r.forAgent()
	if err != nil || req.Validate() != nil {
		return nil, nil
	}
	err = ask(ctx, r.Socket, delPatience, func(ctx context.Context, agent *api.Client) error { return agent.Endpoints().Remove(ctx, req) })
	var refused refusal
	switch {
	case errors.Is(err, errAway):
		if left := api.EndpointSpool(r.Spool).Put(req); left != nil {
			return nil, types.NewError(types.ErrTryAgainLater, err.Error()+"; and the removal cannot be left to it: "+left.Error(), "make room on the disk, or start `weft agent`; the runtime tries again")
		}
		return nil, nil
	case errors.As(err, &refused) && slices.Contains([]int{400, 404, 422}, refused.status):
		return nil, nil // nothing to remove can be meant
	}
	return nil, err
}

// check fails unless the pod's network is as ADD said.
func check(ctx context.Context, r request) (any, error) {
	req, err := r.forAgent()
	if err != nil {
		return nil, err
	}
	var got *api.EndpointResult
	err = ask(ctx, r.Socket, addPatience, func(ctx context.Context, agent *api.Client) error {
		got, err = agent.Endpoints().Look(ctx, req)
		return err
	})
	var refused refusal
	if errors.As(err, &refused) {
		switch refused.status {
		case 404:
			return nil, types.NewError(types.ErrUnknownContainer, refused.is.Msg, "start the pod again")
		case 409:
			return nil, types.NewError(codeDamaged, refused.is.Msg, "start the pod again")
		}
	}
	if err != nil {
		return nil, tryLater(err)
	}
	return nil, r.compare(got)
}

// collect takes away the networks of all pods whose sandbox the runtime no longer has.
func collect(ctx context.Context, r request) (any, error) {
	valid := r.Valid
	if valid == nil {
		valid = r.ValidBefore
	}
	if valid == nil {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, "the configuration has no cni.dev/valid-attachments, and nothing was removed", "name those that are valid; an empty list removes all")
	}
	keep := api.EndpointRetention{Network: r.Name, Attachments: []api.EndpointAttachment{}}
	for _, a := range *valid {
		keep.Attachments = append(keep.Attachments, api.EndpointAttachment{Container: a.ContainerID, Interface: a.IfName})
	}
	return nil, tryLater(ask(ctx, r.Socket, gcPatience, func(ctx context.Context, agent *api.Client) error { return agent.Endpoints().Retain(ctx, keep) }))
}

// status fails while pods cannot be added.
func status(ctx context.Context, r request) (any, error) {
	var ready api.EndpointReadiness
	err := ask(ctx, r.Socket, statusPatience, func(ctx context.Context, agent *api.Client) (err error) {
		ready, err = agent.EndpointsReady(ctx)
		return err
	})
	var refused refusal
	switch {
	case errors.As(err, &refused):
		return nil, types.NewError(types.ErrPluginNotAvailable, refused.is.Msg, refused.is.Details)
	case err != nil:
		return nil, types.NewError(types.ErrPluginNotAvailable, err.Error(), "is `weft agent` running on this node?")
	case ready.Limited:
		return nil, types.NewError(types.ErrLimitedConnectivity, ready.Why, ready.Hint)
	case !ready.Ready:
		return nil, types.NewError(types.ErrPluginNotAvailable, ready.Why, ready.Hint)
	}
	return nil, nil
}
