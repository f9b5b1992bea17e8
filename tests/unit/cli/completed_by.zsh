# What an interactive zsh offers for a command line: completed_by.zsh FOLDER-OF-FUNCTIONS LINE. A word a line.
# The shell runs on a terminal of zpty's. What its completion functions hand to compadd is printed between marks.
zmodload zsh/zpty || exit 3
inner=$(mktemp) || exit 3
trap 'rm -f $inner' EXIT
print -r -- "fpath=(${(q)1} \$fpath)" >$inner
cat >>$inner <<'INNER'
PROMPT= RPROMPT=
xl() { printf 'Name ID\nDomain-0 0\nweb1 1\nweb2 2\n' }
autoload -U compinit && compinit -u -D
bindkey '^I' complete-word
zstyle ':completion:*' insert-tab false
compadd() {
  # Calls that only fill an array (-O, -A, -D) offer nothing.
  if [[ ${@[1,(i)(-|--)]} == *-(O|A|D)\ * ]]; then builtin compadd "$@"; return; fi
  local -a offered
  builtin compadd -A offered "$@"
  (( $#offered )) && print -rl -- "<offered>${^offered}</offered>"
  builtin compadd "$@"
}
said_all() { print -r -- '<all>' ; exit }
comppostfuncs=(said_all)
print -r -- '<ready>'
INNER
zpty shell zsh -f -i
until_mark() {
  local part
  while zpty -r shell part; do
    print -r -- $part
    [[ $part == *$1* ]] && return
  done
}
zpty -w shell "source $inner"
until_mark '<ready>' >/dev/null
zpty -n -w shell "$2"$'\t'
until_mark '<all>' | tr -d '\r' | sed -n 's/.*<offered>\(.*\)<\/offered>.*/\1/p'
zpty -d shell
