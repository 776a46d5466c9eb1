package cni

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/utils"

	"github.com/weft-mesh/weft/api"
)

// Socket is where the agent takes requests, unless the configuration says otherwise.
const Socket = "/run/weft/agent.sock"

// maxConfig is how much of a configuration is read: the list of valid attachments is in it.
const maxConfig = 8 << 20

// config is the plugin's part of a network's configuration, as a runtime sends it.
type config struct {
	CNIVersion string    `json:"cniVersion"`
	Name       string    `json:"name"`
	Type       string    `json:"type"`
	Socket     string    `json:"socket"`
	Spool      string    `json:"spool"`
	DNS        types.DNS `json:"dns"`
	IPAM       struct {
		Type string `json:"type"`
	} `json:"ipam"`
	Runtime    map[string]json.RawMessage `json:"runtimeConfig"`
	PrevResult map[string]any             `json:"prevResult"`
	// Valid is missing unless the command is GC; ValidBefore is its name in drafts of the
	// interface.
	Valid       *[]types.GCAttachment `json:"cni.dev/valid-attachments"`
	ValidBefore *[]types.GCAttachment `json:"cni.dev/attachments"`

	fields []string
}

// known are the fields of a configuration that mean something to the plugin, or to the
// runtime alone.
var known = []string{
	"cniVersion", "cniVersions", "name", "type", "capabilities", "args", "dns", "ipam", "runtimeConfig", "prevResult", "disableCheck", "disableGC", "loadOnlyInlinedPlugins",
	"socket", "spool",
}

// reserved begins the names that the interface has for itself.
const reserved = "cni.dev/"

func readConfig(text []byte) (c config, err error) {
	if len(text) > maxConfig {
		return c, types.NewError(types.ErrDecodingFailure, fmt.Sprintf("the network's configuration is longer than %d bytes", maxConfig), "")
	}
	var fields map[string]json.RawMessage
	if err = json.Unmarshal(text, &fields); err == nil {
		err = json.Unmarshal(text, &c)
	}
	if err != nil {
		return c, types.NewError(types.ErrDecodingFailure, "the network's configuration cannot be read: "+err.Error(), "correct it in the runtime's folder of configurations")
	}
	c.fields = slices.Sorted(maps.Keys(fields))
	if !slices.Contains(versions, c.CNIVersion) {
		return c, types.NewError(types.ErrIncompatibleCNIVersion, fmt.Sprintf("version %q of the interface is not one that weft speaks", c.CNIVersion), "use one of "+strings.Join(versions, ", ")+" as cniVersion")
	}
	if c.Name == "" {
		return c, types.NewError(types.ErrInvalidNetworkConfig, "the network's configuration has no name", "add one")
	}
	if err := utils.ValidateNetworkName(c.Name); err != nil {
		return c, err
	}
	for _, f := range []struct {
		name  string
		path  *string
		usual string
	}{{"socket", &c.Socket, Socket}, {"spool", &c.Spool, string(api.DefaultEndpointSpool)}} {
		if *f.path == "" {
			*f.path = f.usual
		}
		if !filepath.IsAbs(*f.path) {
			return c, types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("%s is %q", f.name, *f.path), "give an absolute path")
		}
	}
	return c, nil
}

// strict refuses what a new pod would not get.
func (c config) strict() error {
	unsupported := func(what, hint string) error {
		return types.NewError(types.ErrUnsupportedField, what, hint)
	}
	for _, name := range c.fields {
		if !slices.Contains(known, name) && !strings.HasPrefix(name, reserved) {
			return unsupported(fmt.Sprintf("weft has no setting %q", name), "remove it from the plugin's configuration")
		}
	}
	if c.IPAM.Type != "" {
		return unsupported(fmt.Sprintf("weft gives out addresses itself, without the plugin %q", c.IPAM.Type), "remove ipam from the plugin's configuration")
	}
	for _, name := range slices.Sorted(maps.Keys(c.Runtime)) {
		switch name {
		case "ips":
		case "portMappings": // host ports are served by the agent, from the pod's object
		default:
			return unsupported(fmt.Sprintf("weft does not have the capability %q", name), "remove it from the plugin's capabilities, or chain a plugin that has it")
		}
	}
	return nil
}

// forAgent is what the agent needs to know of the pod and its sandbox.
func (r request) forAgent() (out api.EndpointRequest, err error) {
	args, err := readArgs(r.args)
	if err != nil {
		return out, err
	}
	out = api.EndpointRequest{
		Namespace: args["K8S_POD_NAMESPACE"], Name: args["K8S_POD_NAME"], UID: args["K8S_POD_UID"],
		Container: r.container, Interface: r.device, Network: r.Name,
	}
	if out.Namespace == "" || out.Name == "" {
		return out, types.NewError(types.ErrInvalidEnvironmentVariables, "CNI_ARGS does not name the pod", "give K8S_POD_NAMESPACE and K8S_POD_NAME, as Kubernetes' runtimes do")
	}
	return out, nil
}

// addresses are those that the pod should get.
func (r request) addresses() (out []netip.Addr, err error) {
	args, err := readArgs(r.args)
	if err != nil {
		return nil, err
	}
	if _, ok := args["MAC"]; ok {
		return nil, types.NewError(types.ErrUnsupportedField, "weft chooses pods' MAC addresses", "remove MAC from CNI_ARGS")
	}
	var ips []string
	if text, ok := r.Runtime["ips"]; ok {
		if err := json.Unmarshal(text, &ips); err != nil {
			return out, types.NewError(types.ErrInvalidNetworkConfig, "runtimeConfig.ips cannot be read: "+err.Error(), "give a list of addresses")
		}
	}
	if ip, ok := args["IP"]; ok {
		ips = append(ips, ip)
	}
	for _, text := range ips {
		text, _, _ = strings.Cut(text, "/") // a prefix, in some runtimes
		ip, err := netip.ParseAddr(text)
		if err != nil {
			return out, types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("the requested address %q is not one", text), "give addresses of the node's pod CIDRs")
		}
		out = append(out, ip)
	}
	return out, nil
}

// readArgs reads CNI_ARGS. Those that nobody here knows are somebody else's.
func readArgs(text string) (map[string]string, error) {
	args := map[string]string{}
	for pair := range strings.SplitSeq(text, ";") {
		if pair == "" {
			continue
		}
		key, value, ok := strings.Cut(pair, "=")
		if _, twice := args[key]; !ok || key == "" || twice {
			return nil, types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("CNI_ARGS cannot be read at %q", pair), "give it as KEY=VALUE;KEY=VALUE, with each key once")
		}
		args[key] = value
	}
	return args, nil
}
