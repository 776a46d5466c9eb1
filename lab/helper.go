package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
)

// Helpers are the commands that the lab runs itself, as in `weft lab sandbox …`.
// They are not for people.
var Helpers = []string{"sandbox", "enter", "pods", "etcd", "pause", "cni"}

// Helper is what a helper process runs. args begins with its name.
func Helper(ctx context.Context, args []string) error {
	switch {
	case len(args) == 2 && args[0] == "sandbox":
		return HoldSandbox(args[1])
	case len(args) > 4 && args[0] == "enter" && args[3] == "--":
		return EnterPod(args[1], args[2], args[4:])
	case len(args) == 1 && args[0] == "pause": // holds a pod's namespaces
		<-ctx.Done()
		return nil
	case len(args) > 1 && args[0] == "cni":
		return Plugin(ctx, args[1:])
	case len(args) == 2 && args[0] == "etcd":
		return askEtcd(ctx, args[1], os.Stdout)
	case len(args) == 2 && args[0] == "pods":
		err := WatchPods(ctx, os.Getenv("WEFT_CONFIG"), args[1], os.Stdout)
		if errors.Is(err, os.ErrClosed) {
			return nil // the lab is gone
		}
		return err
	}
	return fmt.Errorf("%q is a helper that only the lab itself runs", args)
}
