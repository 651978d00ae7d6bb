# Perl LWP with a cookie jar: lwp_jar.pl URL KIND...
use strict;
use warnings;
use LWP::UserAgent;

my ($base, @kinds) = @ARGV;
for my $kind (@kinds) {
    my $client = LWP::UserAgent->new(cookie_jar => {});
    my @said = map { $client->get("$base/$_")->decoded_content } "login/$kind", "me";
    print "$kind @said\n";
}
