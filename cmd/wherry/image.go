package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"wherry.dev/api"
)

func (a *app) imageCmd() *cobra.Command {
	return group("image", "Look after the images of this host", a.imageLsCmd(), a.imageLoadCmd(), a.imagePullCmd(), a.imageRmCmd())
}

func (a *app) imageLsCmd() *cobra.Command {
	c := &cobra.Command{Use: "ls", Short: "List the images", Args: noArgs("it lists all")}
	c.RunE = a.withClient(func(c *cobra.Command, cl *api.Client, _ []string) error {
		l, err := cl.Images(c.Context())
		if err != nil {
			return err
		}
		return a.showImages(l.Items)
	})
	return a.formatFlag(c, "table")
}

func (a *app) showImages(items []api.Image) error {
	return show(a, items, []string{"IMAGE", "DIGEST", "PLATFORM", "SIZE", "IN USE"}, func(i api.Image) []string {
		use := "no"
		if i.InUse {
			use = "yes"
		}
		return []string{shortImage(i.Name), i.Digest[:min(19, len(i.Digest))], strings.Join(i.Platforms, ","), bytesText(i.Size), use}
	})
}

func (a *app) imageLoadCmd() *cobra.Command {
	c := &cobra.Command{
		Use: "load [FILE…]", Short: "Load OCI or Docker archives (docker save) from files or standard input",
	}
	input := c.Flags().StringArrayP("input", "i", nil, "archive to load, as docker has it")
	c.RunE = a.withClient(func(c *cobra.Command, cl *api.Client, args []string) error {
		files := append(*input, args...)
		if len(files) == 0 {
			files = []string{"-"}
		}
		for _, f := range files {
			if err := a.loadImages(c, cl, f); err != nil {
				return err
			}
		}
		return nil
	})
	return c
}

func (a *app) loadImages(c *cobra.Command, cl *api.Client, path string) error {
	var r io.Reader = a.in
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return fmt.Errorf("load image: %w", err)
		}
		defer f.Close()
		r = f
	}
	l, err := cl.LoadImages(c.Context(), r)
	if err != nil {
		return fmt.Errorf("load %s: %w", path, err)
	}
	for _, i := range l.Items {
		fmt.Fprintf(a.out, "loaded %s %s\n", shortImage(i.Name), i.Digest[:min(19, len(i.Digest))])
	}
	return nil
}

func (a *app) imagePullCmd() *cobra.Command {
	c := &cobra.Command{Use: "pull IMAGE…", Short: "Pull images from their registries", Args: someArgs("names of images", 1, 0)}
	platform := c.Flags().String("platform", "", "os/arch of the image (default: this host's)")
	c.RunE = a.withClient(func(c *cobra.Command, cl *api.Client, args []string) error {
		for _, ref := range args {
			p := newProgress(a.err, a.terminal())
			img, err := cl.PullImage(c.Context(), api.PullImage{Image: ref, Platform: *platform}, func(l api.PullProgress) {
				if p.rewrite {
					p.line(ref, fmt.Sprintf("%s of %s", bytesText(l.Done), bytesText(l.Total)))
				}
			})
			p.close()
			if err != nil {
				return err
			}
			fmt.Fprintf(a.out, "%s@%s\n", shortImage(img.Name), img.Digest)
		}
		return nil
	})
	return c
}

func (a *app) imageRmCmd() *cobra.Command {
	return &cobra.Command{
		Use: "rm IMAGE…", Short: "Remove images that no container uses", Args: someArgs("names of images", 1, 0),
		RunE: a.withClient(func(c *cobra.Command, cl *api.Client, args []string) error {
			return each(args, func(ref string) error {
				if err := cl.RemoveImage(c.Context(), ref); err != nil {
					return err
				}
				fmt.Fprintln(a.out, ref)
				return nil
			})
		}),
	}
}
