# What gpu.sbatch, node.sbatch and nodes.sbatch share. They source this file from the course's folder.

# Yours, else that of the environment that the site's part activated, else the one that 'make' created, else whatever
# python3 the job finds. A container's command is several words, so this is an array:
# python=(apptainer exec --nv IMAGE python3).
if [ -n "${EFFLAB_PYTHON:-}" ]; then
  if [ -x "$EFFLAB_PYTHON" ]; then python=("$EFFLAB_PYTHON"); else read -ra python <<< "$EFFLAB_PYTHON"; fi
elif [ -z "${python[*]:-}" ]; then
  if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
    python=(python)
  elif .venv/bin/python -c '' 2> /dev/null; then python=("$PWD/.venv/bin/python"); else python=(python3); fi
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

# run_lab TOPIC [OPTION ...]: 'efflab run' with these words, in the background, so that bash can answer a signal while
# the program runs: bash runs a trap only when 'wait' returns.
run_lab() {
  if [ -z "${1:-}" ]; then
    echo "name the lab's topic, one of: $(basename -s .md -a labs/source/*.md | xargs)" >&2
    exit 2
  fi
  local pid="" status=0 caught="" leave=""
  # The job has to leave: 'efflab run' saves its state between two steps and ends with a status that is not zero.
  trap 'caught=yes; leave=yes; echo "job $SLURM_JOB_ID: asked to leave; saving what was measured"; kill -USR1 "$pid" || true' USR1
  # Slurm sends SIGTERM to the program as well; the shell only has to outlive it.
  trap 'caught=yes' TERM
  echo "job $SLURM_JOB_ID on ${SLURM_JOB_NODELIST:-this node}: ${python[*]} -m efflab.cli run $*"
  "${python[@]}" -m efflab.cli run "$@" &
  pid=$!
  while :; do
    caught=""
    wait "$pid" && status=0 || status=$?
    [ -n "$caught" ] || break # a signal ended the wait, not the program: wait again
  done
  if [ -n "$leave" ] && [ "$status" -ne 0 ]; then
    # A run that never gets further would be queued for ever.
    if [ "${SLURM_RESTART_COUNT:-0}" -ge 10 ]; then
      echo "job $SLURM_JOB_ID was queued again 10 times; submit it once more with a longer --time" >&2
    elif scontrol requeue "$SLURM_JOB_ID"; then
      echo "job $SLURM_JOB_ID is queued again and will go on where it stopped"
      trap - EXIT # this was not its end
    else
      echo "job $SLURM_JOB_ID cannot be queued again; submit the same once more and it goes on where it stopped" >&2
    fi
  fi
  exit "$status"
}
