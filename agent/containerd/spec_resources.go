package containerd

import (
	"github.com/opencontainers/runtime-spec/specs-go"

	"wherry.dev/spec"
)

// specResources returns the limits of a container. What the node cannot limit
// is refused, but for swap: where it cannot be limited, there mostly is none.
func specResources(t *spec.Template, o SpecOptions) (*specs.LinuxResources, error) {
	r := &t.Resources
	out := &specs.LinuxResources{}
	cpu, err := specCPU(r, o)
	if err != nil {
		return nil, err
	}
	if *cpu != (specs.LinuxCPU{}) {
		out.CPU = cpu
	}
	if out.Memory, err = specMemory(r, o); err != nil {
		return nil, err
	}
	if out.BlockIO, err = specBlockIO(r.BlockIO, o); err != nil {
		return nil, err
	}
	pids := int64(defaultPids)
	if r.Pids != 0 {
		pids = r.Pids
	}
	out.Pids = &specs.LinuxPids{Limit: &pids} // a negative one is none
	return out, nil
}

func specCPU(r *spec.Resources, o SpecOptions) (*specs.LinuxCPU, error) {
	cpu := &specs.LinuxCPU{Cpus: r.Cpuset}
	switch {
	case r.NanoCPUs > 0:
		period := uint64(100_000)
		quota := r.NanoCPUs * int64(period) / 1e9
		cpu.Period, cpu.Quota = &period, &quota
	default:
		if r.CPUPeriod > 0 {
			period := uint64(r.CPUPeriod)
			cpu.Period = &period
		}
		if r.CPUQuota != 0 {
			quota := r.CPUQuota
			cpu.Quota = &quota
		}
	}
	if r.CPUShares > 0 {
		shares := uint64(r.CPUShares)
		cpu.Shares = &shares
	}
	if r.RealtimeRuntime == 0 && r.RealtimePeriod == 0 {
		return cpu, nil
	}
	if o.Unified || o.NoRealtime {
		return nil, spec.Invalidf("cpu_rt_runtime: the kernel of this node does not share out real-time scheduling, which needs cgroup v1 and CONFIG_RT_GROUP_SCHED; leave it out, or use placement constraints")
	}
	if r.RealtimeRuntime > 0 {
		runtime := r.RealtimeRuntime
		cpu.RealtimeRuntime = &runtime
	}
	if r.RealtimePeriod > 0 {
		period := uint64(r.RealtimePeriod)
		cpu.RealtimePeriod = &period
	}
	return cpu, nil
}

func specMemory(r *spec.Resources, o SpecOptions) (*specs.LinuxMemory, error) {
	var out specs.LinuxMemory
	if r.Memory > 0 {
		limit := r.Memory
		out.Limit = &limit
		// As in Docker: without a word about it, as much swap as memory.
		swap := 2 * limit
		if r.MemorySwap != 0 {
			swap = r.MemorySwap
		}
		if !o.NoSwapLimit {
			out.Swap = &swap
		}
	}
	if r.Swappiness != nil {
		if o.Unified {
			return nil, spec.Invalidf("mem_swappiness: this node has cgroup v2, which knows no swappiness; leave it out, or set memswap_limit")
		}
		swappiness := uint64(*r.Swappiness)
		out.Swappiness = &swappiness
	}
	if r.KeepOnOOM {
		if o.Unified {
			return nil, spec.Invalidf("oom_kill_disable: this node has cgroup v2, where a process beyond the limit of memory is always ended; leave it out, or use oom_score_adj")
		}
		keep := true
		out.DisableOOMKiller = &keep
	}
	if out == (specs.LinuxMemory{}) {
		return nil, nil
	}
	return &out, nil
}

func specBlockIO(b *spec.BlockIO, o SpecOptions) (*specs.LinuxBlockIO, error) {
	if b == nil {
		return nil, nil
	}
	if o.NoBlockWeight && (b.Weight != 0 || len(b.WeightDevices) > 0) {
		return nil, spec.Invalidf("blkio_config: no I/O scheduler of this node weighs control groups; load bfq, or use the limits of rates")
	}
	out := &specs.LinuxBlockIO{}
	if b.Weight != 0 {
		weight := b.Weight
		out.Weight = &weight
	}
	for _, d := range b.WeightDevices {
		dev, err := o.blockDevice(d.Path)
		if err != nil {
			return nil, err
		}
		weight := specs.LinuxWeightDevice{Weight: &d.Weight}
		weight.Major, weight.Minor = dev.Major, dev.Minor
		out.WeightDevice = append(out.WeightDevice, weight)
	}
	for _, list := range []struct {
		to   *[]specs.LinuxThrottleDevice
		from []spec.DeviceRate
	}{
		{&out.ThrottleReadBpsDevice, b.ReadBytes}, {&out.ThrottleWriteBpsDevice, b.WriteBytes},
		{&out.ThrottleReadIOPSDevice, b.ReadOps}, {&out.ThrottleWriteIOPSDevice, b.WriteOps},
	} {
		for _, d := range list.from {
			dev, err := o.blockDevice(d.Path)
			if err != nil {
				return nil, err
			}
			rate := specs.LinuxThrottleDevice{Rate: d.Rate}
			rate.Major, rate.Minor = dev.Major, dev.Minor
			*list.to = append(*list.to, rate)
		}
	}
	return out, nil
}

func (o *SpecOptions) blockDevice(path string) (specs.LinuxDevice, error) {
	d, ok := o.BlockDevices[path]
	if !ok || d.Type != "b" {
		return d, spec.Invalidf("blkio_config: %s is no block device of this node", path)
	}
	return d, nil
}
