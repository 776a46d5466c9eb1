package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
)

// Helpers are the names that the lab starts its own program under, as in
// `weft lab sandbox …`. They are no commands for people.
var Helpers = []string{"sandbox", "enter", "pods", "etcd"}

// Helper is the life of a helper process. args begins with its name.
func Helper(ctx context.Context, args []string) error {
	switch {
	case len(args) == 2 && args[0] == "sandbox":
		return HoldSandbox(args[1])
	case len(args) > 4 && args[0] == "enter" && args[3] == "--":
		return EnterPod(args[1], args[2], args[4:])
	case len(args) == 2 && args[0] == "etcd":
		return askEtcd(ctx, args[1], os.Stdout)
	case len(args) == 2 && args[0] == "pods":
		err := WatchPods(ctx, os.Getenv("WEFT_CONFIG"), args[1], os.Stdout)
		if errors.Is(err, os.ErrClosed) {
			return nil // the lab is gone
		}
		return err
	}
	return fmt.Errorf("helper %q: the lab starts these itself", args)
}
