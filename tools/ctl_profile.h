/* trikvctl profile check|show|diff: profiles as files, without a daemon. */
#ifndef TKV_TOOLS_CTL_PROFILE_H
#define TKV_TOOLS_CTL_PROFILE_H

/* argv[0] is "profile". Returns the exit status: 0 sound, fits or equal; 1 not; 64 wrong usage. */
int ctl_profile(int argc, char **argv);

#endif /* TKV_TOOLS_CTL_PROFILE_H */
