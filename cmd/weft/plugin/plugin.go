// Package plugin turns the process into the CNI plugin, if a container runtime has started it
// as that, before the rest of weft is initialized: that takes half of the plugin's time.
//
// Go initializes packages in the order of their import paths as soon as what they import is,
// and this one imports little. In whatever order, the process is the plugin.
package plugin

import (
	"os"

	"github.com/weft-mesh/weft/cni"
)

func init() {
	if cni.Called(os.Args, os.Getenv) {
		os.Exit(cni.Main())
	}
}
