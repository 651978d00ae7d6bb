# A sync with 3DEXPERIENCE as people write it: LWP, lt and password in the query of the login. BASE_URL RUN, PASSPORT.
use strict;
use warnings;
use JSON::PP;
use LWP::UserAgent;
use URI;

my ($base, $run) = @ARGV;
my $agent = LWP::UserAgent->new(timeout => 120, cookie_jar => {}, requests_redirectable => [ 'GET', 'HEAD', 'POST' ]);
my $items = "$base/resources/v1/modeler/dseng/dseng:EngItem";
my (@failures, %csrf);
my $calls = 0;

sub call {
    my ($method, $url, $expected, $body) = @_;
    $calls++;
    my $request = HTTP::Request->new($method => $url);
    $request->header(%csrf, 'Content-Type' => 'application/json', Accept => 'application/json');
    $request->content(encode_json($body)) if $body;
    my $answer = $agent->request($request);
    push @failures, "$method $url: " . $answer->code unless $answer->code == $expected;
    return eval { decode_json($answer->decoded_content(charset => 'none')) } || {};
}

my $asked = call('GET', "$ENV{PASSPORT}/login?action=get_auth_params", 200);
my $login = URI->new("$ENV{PASSPORT}/login");
$login->query_form(
    lt => $asked->{lt}, username => 'script', password => $ENV{PASSWORD},
    service => "$base/resources/v1/application/CSRF"
);
my $told = call('POST', $login, 200);
if ($told->{csrf}) {
    # The colon keeps LWP from making a hyphen of the underscore.
    %csrf = (":$told->{csrf}{name}" => $told->{csrf}{value});
    for my $skip (0, 25, 50, 75) {
        my $page = call('GET', "$items/search?\$skip=$skip", 200);
        push @failures, 'a page is not whole' unless @{ $page->{member} || [] } == 25;
    }
    call('POST', $items, 200, { items => [ { attributes => { title => "$run-$_" } } ] }) for 0 .. 11;
    my $refused = call('POST', $items, 403, { items => [ { attributes => { title => "forbidden-$run" } } ] });
    push @failures, 'the business error is another one' unless ($refused->{error} || '') =~ /no access/;
    $agent->get("$ENV{PASSPORT}/logout");
} else {
    push @failures, 'there is no login';
}
print encode_json({ calls => $calls, failures => \@failures, session => $told->{csrf}{value} }), "\n";
exit(@failures ? 1 : 0);
