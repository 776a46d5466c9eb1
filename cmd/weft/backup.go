package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver"
	"github.com/weft-mesh/weft/statefile"
)

func backupCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "backup FILE",
		Short:   "Write a backup of a cluster's store",
		GroupID: operate,
		Long: "Write a backup of a cluster's store: every object, node and peer, with the certificate\n" +
			"authority. The cluster keeps running. The file holds private keys and gets mode 0600. A file\n" +
			"with that name is replaced only once the new backup is complete and has been checked.\n" +
			"`weft restore` restores it. --timeout limits how long the API server may send nothing.",
		Example: "  weft -c east backup east.backup",
		Args:    usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			file := args[0]
			if file == standardOutput {
				return usageError{errors.New("name a file: a backup is checked before it counts, so it is not written to standard output")}
			}
			if err := placeFor(file, file); err != nil {
				return err
			}
			c, err := client(cmd)
			if err != nil {
				return err
			}
			defer c.Close()
			b, err := backUp(cmd, c, file)
			if err != nil {
				return advised(c, fmt.Errorf("back up %s: %w", c.Name(), err))
			}
			return show(cmd, []api.Backup{b}, backupTable(b))
		},
	}
}

func backupTable(b api.Backup) table {
	return table{
		columns: columns("CLUSTER", "FILE", "SIZE", "REVISION", "KEYS", "*GENERATION"), name: 1,
		rows: [][]string{{b.Cluster, b.File, size(b.Bytes), fmt.Sprint(b.Revision), fmt.Sprint(b.Keys), b.Generation}},
	}
}

// errQuiet is why a backup is given up.
var errQuiet = errors.New("the API server sends nothing more")

// backUp writes a checked backup. It may take as long as it needs, but the server has to
// keep sending.
func backUp(cmd *cobra.Command, c *api.Client, file string) (b api.Backup, err error) {
	ctx, cancel := context.WithCancelCause(cmd.Context())
	defer cancel(nil)
	patience, _ := cmd.Flags().GetDuration("timeout")
	if patience <= 0 {
		patience = 365 * 24 * time.Hour
	}
	quiet := time.AfterFunc(patience, func() { cancel(errQuiet) })
	defer quiet.Stop()
	err = statefile.Create(file, func(f *os.File) error {
		shown := &progress{to: cmd.ErrOrStderr()}
		defer shown.end()
		err := c.Backup(ctx, io.MultiWriter(f, shown, heard(func() { quiet.Reset(patience) })))
		if context.Cause(ctx) == errQuiet {
			return fmt.Errorf("%w: no answer for %v: %w", errQuiet, patience, context.DeadlineExceeded)
		}
		if err != nil {
			return err
		}
		quiet.Stop()
		b, err = apiserver.ReadBackup(f.Name())
		if errors.Is(err, apiserver.ErrNoBackup) {
			return fmt.Errorf("what the API server sent %w; try again", err)
		}
		b.File = file
		return err
	})
	return b, err
}

// heard is called for each part that arrives.
type heard func()

func (h heard) Write(p []byte) (int, error) {
	h()
	return len(p), nil
}

// progress shows on a terminal how much has arrived.
type progress struct {
	to    io.Writer
	bytes int64
	next  time.Time
	drawn bool
}

func (p *progress) Write(b []byte) (int, error) {
	p.bytes += int64(len(b))
	if f, ok := p.to.(*os.File); ok && time.Now().After(p.next) && term.IsTerminal(int(f.Fd())) {
		fmt.Fprintf(p.to, "\r%s\x1b[K", size(p.bytes))
		p.drawn, p.next = true, time.Now().Add(200*time.Millisecond)
	}
	return len(b), nil
}

// end clears the line.
func (p *progress) end() {
	if p.drawn {
		fmt.Fprint(p.to, "\r\x1b[K")
	}
}

// installedConfig is where an API server's configuration is on its machine.
const installedConfig = "/etc/weft/apiserver.yaml"

func restoreCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:     "restore FILE",
		Short:   "Restore an API server's store from a backup",
		GroupID: operate,
		Long: "Restore an API server's embedded store from a backup, on its machine and while it is stopped.\n" +
			"Refused while another API server of the cluster runs: its store would go on beside this one.\n" +
			"The store that is there, if any, is put aside next to it. The certificate authority is\n" +
			"restored too if it is lost or another one. A backup of another cluster is refused.\n" +
			"Afterwards start the API server: agents and peers notice that its store went back in time,\n" +
			"read it again from scratch, and follow it; their traffic is not interrupted.",
		Example: "  systemctl stop weft-apiserver\n  weft restore east.backup\n  systemctl start weft-apiserver",
		Args:    usageArgs(cobra.ExactArgs(1)),
	}
	config := configure(cmd, apiserver.Defaults(), map[string]string{"data-dir": "folder of the API server's data"})
	at := cmd.Flags().Lookup("config")
	at.DefValue, at.Usage = installedConfig, "the API server's configuration file"
	_ = at.Value.Set(installedConfig) // a string takes any
	cmd.Flags().BoolVar(&force, "force", false, "restore the backup of another cluster")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := config()
		if errors.Is(err, os.ErrNotExist) && !cmd.Flags().Changed("config") {
			return usageError{fmt.Errorf("%w: run it on the API server's machine, or name its configuration with --config", err)}
		}
		if err != nil {
			return err
		}
		if err := c.Validate(); err != nil {
			return usageError{inFile[apiserver.Config](cmd, err)}
		}
		r, err := apiserver.Restore(c, args[0], force)
		switch {
		case errors.Is(err, apiserver.ErrNoBackup), errors.Is(err, os.ErrNotExist) && absentFile(args[0]):
			return usageError{err}
		case errors.Is(err, apiserver.ErrOtherCluster):
			return hinted{err, "name that cluster's configuration with --config; to make this machine the API server of " +
				"that cluster, change its configuration as well and repeat with --force"}
		case err != nil:
			return err
		}
		r.Next = afterRestore(r, c.Cluster)
		return showRestored(cmd, r)
	}
	return cmd
}

func absentFile(path string) bool {
	_, err := os.Stat(path)
	return errors.Is(err, os.ErrNotExist)
}

// afterRestore says what is left to do.
func afterRestore(r api.Restored, configured string) (next []string) {
	if r.Backup.Cluster != configured {
		next = append(next, fmt.Sprintf("set cluster: %s and id: %d in the API server's configuration", r.Backup.Cluster, r.Backup.ID))
	}
	next = append(next, "start the API server (`systemctl start weft-apiserver`); agents and peers follow the restored store by themselves",
		"apply again what was applied after the backup, and add nodes and peers again that were added since")
	if len(r.Others) > 0 {
		next = append(next, fmt.Sprintf("the other API servers (%s) still have the store from before: on each, delete the folder etcd in its data folder, run `weft server replace NAME`, then start it; with its join bundle, it joins the restored store", strings.Join(r.Others, ", ")))
	}
	if r.Aside != "" {
		next = append(next, "once all is well, delete "+r.Aside)
	}
	if r.AuthorityAside != "" {
		next = append(next, "and "+r.AuthorityAside)
	}
	return next
}

func showRestored(cmd *cobra.Command, r api.Restored) error {
	if f, err := format(cmd); err != nil || f != "table" && f != "wide" {
		return errors.Join(err, show(cmd, []api.Restored{r}, table{columns: columns("CLUSTER"), rows: [][]string{{r.Backup.Cluster}}}))
	}
	out := cmd.OutOrStdout()
	say := func(format string, args ...any) { fmt.Fprintln(out, printableLines(fmt.Sprintf(format, args...))) }
	say("The store of cluster %s is restored to revision %d in %s.", r.Backup.Cluster, r.Backup.Revision, filepath.Join(r.DataDir, "etcd"))
	if r.Aside != "" {
		say("The store that was there is now %s.", r.Aside)
	}
	if r.Authority {
		say("Its certificate authority is restored too.")
	}
	if r.AuthorityAside != "" {
		say("The certificate authority that was there is now %s.", r.AuthorityAside)
	}
	say("Next:")
	for _, step := range r.Next {
		say("  - %s", step)
	}
	return nil
}
