#!/bin/sh
# A worker of the storm: FOLDER SECONDS MANNER. It writes down that it began and that it is done, for those who judge.
me="$AGENTD_ROUND $RANK $WORLD_SIZE $TORCHELASTIC_RESTART_COUNT $TORCHELASTIC_MAX_RESTARTS $AGENTD_NODE_ID $MASTER_ADDR:$MASTER_PORT $$ $ROLE_NAME $ROLE_RANK $ROLE_WORLD_SIZE"
echo "began $me" >> "$1/$TORCHELASTIC_RUN_ID"
case $3 in
polite) trap 'exit 143' TERM ;;
stubborn) trap '' TERM ;;
family)
    sleep 1000 &
    setsid sleep 1000 &
    ;;
failing) [ "$RANK" = 0 ] && [ "$TORCHELASTIC_RESTART_COUNT" -lt 2 ] && sleep 0.3 && exit 3 ;;
hopeless) [ "$RANK" = 0 ] && sleep 0.5 && exit 3 ;;
esac
sleep "$2" &
wait $!
echo "done $me" >> "$1/$TORCHELASTIC_RUN_ID"
exit 0
